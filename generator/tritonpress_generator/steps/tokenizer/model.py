"""Triton's tokenizer step: BYTES `[batch, 1]` to the engine's inputs, padded or packed."""

import json
import sys
from pathlib import Path

import triton_python_backend_utils as pb_utils

sys.path.insert(0, str(Path(__file__).parent))
from text_encoder import InvalidTextError, TextEncoder


class TritonPythonModel:
    """Tokenises all texts of one execution at once; a bad text refuses its own request and no other."""

    def initialize(self, args):
        self.encoder = TextEncoder.from_folder(Path(__file__).parent)
        self.name = json.loads(args["model_config"])["input"][0]["name"]

    def execute(self, requests):
        batches = [pb_utils.get_input_tensor_by_name(request, self.name).as_numpy().ravel() for request in requests]
        rows, refusals = self.encoder.encode_requests(batches)
        responses = []
        start = 0
        for batch, refusal in zip(batches, refusals, strict=True):
            if refusal is not None:
                responses.append(self._refusal(refusal))
                continue
            responses.append(self._response(rows[start : start + len(batch)]))
            start += len(batch)
        return responses

    def _response(self, rows):
        try:
            tensors = self.encoder.tensors(rows)
        except InvalidTextError as error:
            return self._refusal(error)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, tensor) for name, tensor in tensors.items()])

    def _refusal(self, error):
        message = f"{self.name}[{error.index}] {error}"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
