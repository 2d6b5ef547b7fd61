"""The model's outputs to the public answer."""
