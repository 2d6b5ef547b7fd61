"""What one visit to a GPU that reaches no package registry measures; docs/gpu.md says how.

Files that run there need numpy, onnx and TensorRT (`steps.py`, `serving.py`, `tensorrt_worker.py`, `answers_worker.py`)
or torch (`torch_worker.py`), and nothing of the generator's but `plans/`.
"""
