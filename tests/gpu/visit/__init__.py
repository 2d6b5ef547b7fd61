"""What one visit to a GPU that reaches no package registry measures; docs/gpu.md says how.

Files that run there need numpy, onnx and TensorRT (`tensorrt_worker.py`, `steps.py`, `serving.py`) or torch
(`torch_worker.py`), and nothing of the generator's but `plans/`.
"""
