"""ONNX Runtime within a Python step."""
