"""Triton's post-processing step: the engine's outputs, in any shape, and the public texts to the public answer."""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))
from steps.postprocessor import Postprocessor


class TritonPythonModel:
    """Answers all requests of an execution at once."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.outputs, self.texts = (config["parameters"][key]["string_value"].split() for key in ("outputs", "texts"))
        self.postprocessor = Postprocessor.from_folder(Path(__file__).parent)

    def execute(self, requests):
        tensors = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        counts = [request[self.texts[0]].size for request in tensors]
        texts = {name: np.concatenate([request[name].ravel() for request in tensors]) for name in self.texts}
        outputs = {
            name: np.concatenate(
                [request[name].reshape(count, -1) for request, count in zip(tensors, counts, strict=True)]
            )
            for name in self.outputs
        }
        answers = self.postprocessor(outputs, {}, texts)
        ends = np.cumsum(counts)
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, answer[end - count : end]) for name, answer in answers.items()]
            )
            for end, count in zip(ends, counts, strict=True)
        ]
