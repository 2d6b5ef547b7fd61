"""The ensemble's Python steps. Each folder is copied into the repository as it is.

`model.py` is what Triton runs; it imports nothing of ours but the file beside it, since in production only numpy and
`tokenizers` are there. The file beside it holds the work itself, which the generator imports too: what the gate
measures is what is served.
"""
