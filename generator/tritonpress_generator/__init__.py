"""Compresses a BERT-family encoder under an accuracy gate and writes a Triton model repository."""
