"""Triton's single step: BYTES `[batch, 1]` to the public answer, all of it in one process."""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))
from engine import Engine
from pipeline import Pipeline
from postprocessor import Postprocessor
from text_encoder import TextEncoder


class TritonPythonModel:
    """Answers all texts of one execution at once; a bad text refuses its own request and no other."""

    def initialize(self, args):
        folder = Path(__file__).parent
        config = json.loads(args["model_config"])
        self.name = config["input"][0]["name"]
        self.encoder = TextEncoder.from_folder(folder)
        engine = Engine(folder, {key: value["string_value"] for key, value in config["parameters"].items()})
        self.pipeline = Pipeline(self.encoder.executions, engine, Postprocessor.from_folder(folder))

    def execute(self, requests):
        batches = [pb_utils.get_input_tensor_by_name(request, self.name).as_numpy().ravel() for request in requests]
        rows, refusals = self.encoder.encode_requests(batches)
        good = [batch for batch, refusal in zip(batches, refusals, strict=True) if refusal is None]
        answers = self.pipeline(rows, {self.name: np.concatenate(good)}) if good else {}
        responses = []
        start = 0
        for batch, refusal in zip(batches, refusals, strict=True):
            if refusal is not None:
                message = f"{self.name}[{refusal.index}] {refusal}"
                error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            end = start + len(batch)
            tensors = [pb_utils.Tensor(name, answer[start:end]) for name, answer in answers.items()]
            responses.append(pb_utils.InferenceResponse(tensors))
            start = end
        return responses
