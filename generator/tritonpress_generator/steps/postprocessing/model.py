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
        names = {role: parameter["string_value"].split() for role, parameter in config["parameters"].items()}
        self.texts, self.pieces = names["texts"], names["pieces"]
        self.rows, self.of_tokens = names["rows"], names["of_tokens"]
        self.postprocessor = Postprocessor.from_folder(Path(__file__).parent)

    def execute(self, requests):
        tensors = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        counts = [request[self.texts[0]].size for request in tensors]
        texts = {name: np.concatenate([request[name].ravel() for request in tensors]) for name in self.texts}
        # A request has one row of them, which is as long as it has sequences, texts or tokens.
        pieces = {name: np.concatenate([request[name][0] for request in tensors]) for name in self.pieces}
        outputs = {
            name: np.concatenate(
                [request[name].reshape(count, -1) for request, count in zip(tensors, counts, strict=True)]
            )
            for name in self.rows
        }
        for name in self.of_tokens:
            outputs[name] = np.concatenate([_tokens(request[name], request["lengths"][0]) for request in tensors])
        answers = self.postprocessor(outputs, pieces, texts)
        ends = np.cumsum(counts)
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, answer[end - count : end]) for name, answer in answers.items()]
            )
            for end, count in zip(ends, counts, strict=True)
        ]


def _tokens(values, lengths):
    """Returns the values of tokens, `(tokens,)`, of packed or of padded sequences."""
    if values.size == lengths.sum():
        return values.ravel()
    return values[np.arange(values.shape[1]) < lengths[:, None]]
