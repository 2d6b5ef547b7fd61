"""Triton's tokenizer step: BYTES `[batch, 1]` to the engine's inputs, padded or packed, and where the texts lie."""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))
from steps.sequences import TooManyTokensError
from steps.served import from_folder
from steps.texts import encode_requests


class TritonPythonModel:
    """Tokenises all texts of one execution at once; a bad text refuses its own request and no other."""

    def initialize(self, args):
        self.served = from_folder(Path(__file__).parent)
        config = json.loads(args["model_config"])
        self.names = [tensor["name"] for tensor in config["input"]]
        self.gives = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests):
        batches = [
            tuple(pb_utils.get_input_tensor_by_name(request, name).as_numpy().ravel() for name in self.names)
            for request in requests
        ]
        sequences, refusals = encode_requests(self.served.encoder.encode, batches)
        responses = []
        start = 0
        for columns, refusal in zip(batches, refusals, strict=True):
            if refusal is not None:
                responses.append(self._refusal(refusal.column, refusal.index, refusal))
                continue
            end = start + len(columns[0])
            responses.append(self._response(sequences.of_texts(start, end)))
            start = end
        return responses

    def _response(self, sequences):
        try:
            tensors = self.served.batching.tensors(sequences)
        except TooManyTokensError as error:
            return self._refusal(-1, error.text, error)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, np.ascontiguousarray(tensors[name])) for name in self.gives]
        )

    def _refusal(self, column, index, error):
        message = f"{self.names[column]}[{index}] {error}"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
