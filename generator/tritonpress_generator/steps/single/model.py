"""Triton's single step: BYTES `[batch, 1]` to the public answer, all of it in one process."""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))
from steps.engine import Engine
from steps.pipeline import Pipeline
from steps.postprocessor import Postprocessor
from steps.served import from_folder
from steps.texts import encode_requests


class TritonPythonModel:
    """Answers all texts of one execution at once; a bad text refuses its own request and no other."""

    def initialize(self, args):
        folder = Path(__file__).parent
        config = json.loads(args["model_config"])
        self.names = [tensor["name"] for tensor in config["input"]]
        served = from_folder(folder)
        self.encode = served.encoder.encode
        engine = Engine(folder, {key: value["string_value"] for key, value in config["parameters"].items()})
        self.pipeline = Pipeline(
            served.batching.executions, engine, Postprocessor.from_folder(folder), of_tokens=served.of_tokens
        )

    def execute(self, requests):
        batches = [
            tuple(pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel() for name in self.names)
            for request in requests
        ]
        sequences, refusals = encode_requests(self.encode, batches)
        good = [columns for columns, refusal in zip(batches, refusals, strict=True) if refusal is None]
        answers = {}
        if good:
            together = (np.concatenate(columns) for columns in zip(*good, strict=True))
            answers = self.pipeline(sequences, dict(zip(self.names, together, strict=True)))
        responses = []
        start = 0
        for columns, refusal in zip(batches, refusals, strict=True):
            if refusal is not None:
                message = f"{self.names[refusal.column]}[{refusal.index}] {refusal}"
                error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            end = start + len(columns[0])
            tensors = [pb_utils.Tensor(name, answer[start:end]) for name, answer in answers.items()]
            responses.append(pb_utils.InferenceResponse(tensors))
            start = end
        return responses
