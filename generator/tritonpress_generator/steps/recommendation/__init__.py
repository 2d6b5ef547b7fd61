"""Embeddings to the best items."""
