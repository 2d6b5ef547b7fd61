"""The Python model of `served_models`, as Triton's stub runs it: it does what each text says.

`sleep S` waits S seconds, and `wait FILE` until the file is there, unless the request is cancelled; `bad` is refused
with its index; `fail` is an internal error; everything else is answered at once.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

try:
    import triton_python_backend_utils as pb_utils
except ImportError:  # where a test only reads this file
    pb_utils = None


class TritonPythonModel:
    """Answers with the text, the server and the model's version."""

    def initialize(self, args: dict) -> None:
        config = json.loads(args["model_config"])
        self.input, self.output = config["input"][0]["name"], config["output"][0]["name"]
        self.server = config["parameters"]["server"]["string_value"]
        self.log = config["parameters"]["log"]["string_value"]
        self.version = args["model_version"]
        self.width = config["output"][0]["dims"][0]

    def execute(self, requests: list) -> list:
        return [self.answer(request) for request in requests]

    def answer(self, request: object) -> object:
        texts = [text.decode() for text in pb_utils.get_input_tensor_by_name(request, self.input).as_numpy()[:, 0]]
        for index, text in enumerate(texts):
            self.note(text)
            word, _, argument = text.partition(" ")
            if word == "bad":
                message = f"{self.input}[{index}] must have text, got none"
                return self.error(message, pb_utils.TritonError.INVALID_ARG)
            if word == "fail":
                return self.error("the engine broke", pb_utils.TritonError.INTERNAL)
            if word in ("sleep", "wait"):
                is_over = self.end(word, argument.split()[0])
                while not is_over():
                    if request.is_cancelled():
                        self.note(f"cancelled {text}")
                        return self.error("cancelled", pb_utils.TritonError.CANCELLED)
                    time.sleep(0.005)
        names = [[text.encode(), self.server.encode(), self.version.encode(), b"more"][: self.width] for text in texts]
        scores = np.tile(np.array([3, 2, 1, 0], np.float32)[: self.width], (len(texts), 1))
        tensors = [pb_utils.Tensor(self.output, np.array(names, object)), pb_utils.Tensor("SCORE", scores)]
        return pb_utils.InferenceResponse(tensors)

    def end(self, word: str, argument: str) -> Callable[[], bool]:
        if word == "wait":
            return Path(argument).exists
        end = time.monotonic() + float(argument)
        return lambda: time.monotonic() >= end

    def error(self, message: str, code: object) -> object:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))

    def note(self, line: str) -> None:
        with open(self.log, "a", encoding="utf-8") as log:  # noqa: PTH123
            log.write(f"{line}\n")
