"""The engine of `engines/onnxruntime_edge.py` in a Python step."""
