"""The engine as another Triton model, asked from inside a step."""
