"""Triton's post-processing step: the engine's rows, in any shape, and the public texts to the public answer."""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))
from postprocessor import Postprocessor


class TritonPythonModel:
    """Answers all requests of an execution at once."""

    def initialize(self, args):
        inputs = json.loads(args["model_config"])["input"]
        self.texts = [tensor["name"] for tensor in inputs if tensor["data_type"] == "TYPE_STRING"]
        self.rows = [tensor["name"] for tensor in inputs if tensor["data_type"] != "TYPE_STRING"]
        self.postprocessor = Postprocessor.from_folder(Path(__file__).parent)

    def execute(self, requests):
        tensors = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        counts = [request[self.texts[0]].size for request in tensors]
        texts = {name: np.concatenate([request[name].ravel() for request in tensors]) for name in self.texts}
        rows = {
            name: np.concatenate(
                [request[name].reshape(count, -1) for request, count in zip(tensors, counts, strict=True)]
            )
            for name in self.rows
        }
        answers = self.postprocessor(rows, texts)
        ends = np.cumsum(counts)
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, answer[end - count : end]) for name, answer in answers.items()]
            )
            for end, count in zip(ends, counts, strict=True)
        ]
