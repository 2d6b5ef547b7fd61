"""Logits to labels with probabilities."""
