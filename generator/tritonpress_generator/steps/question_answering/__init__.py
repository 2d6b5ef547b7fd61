"""Scores of tokens to answers."""
