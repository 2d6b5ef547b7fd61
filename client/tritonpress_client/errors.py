"""The errors that the client raises, and the one place where they are made from gRPC's.

    TritonpressError              every error of this package; `target` and `model` say where
    ├── InvalidInputError         the argument or the request is at fault: sending it again gains nothing
    ├── ModelUnavailableError     the server answers, and does not serve this model, or not now
    ├── ServerUnreachableError    no Triton answers at this address
    ├── DeadlineExceededError     no answer within the deadline
    └── InferenceError            the server took the request and failed

A message is one line: the thing, the target, the model, the remedy, and what Triton itself said. The original is the
cause (`__cause__`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tritonclient.utils import InferenceServerException

# Triton's own words for "I am here, the model is not": gRPC's codes alone do not tell them from a lost connection.
_MODEL_IS_MISSING = re.compile(
    r"unknown model|requested model .* is not available|not at ready state|maximum queue size|server is stopping"
    r"|stopped accepting|no version is available",
    re.IGNORECASE,
)


class TritonpressError(Exception):
    """Every error of this package.

    Attributes:
        target: The server's address, `HOST:PORT`; empty where the error was found before any call.
        model: The model's name, or empty.
    """

    def __init__(self, message: str, *, target: str = "", model: str = "") -> None:
        super().__init__(" ".join(message.split()))
        self.target = target
        self.model = model


class InvalidInputError(TritonpressError):
    """The argument or the request is at fault; the same again will be refused again."""


class ModelUnavailableError(TritonpressError):
    """The server answers, and does not serve this model, or not now."""


class ServerUnreachableError(TritonpressError):
    """No Triton answers at this address."""


class DeadlineExceededError(TritonpressError):
    """No answer came within the deadline."""


class InferenceError(TritonpressError):
    """The server took the request and failed."""


@contextmanager
def translated_errors(target: str, model: str, timeout_s: float) -> Iterator[None]:
    """Turns what tritonclient and gRPC raise inside the block into this package's errors.

    Args:
        target: The server's address, for the message.
        model: The model's name, for the message; empty for calls about the server.
        timeout_s: The deadline of the call in seconds, for the message.

    Raises:
        TritonpressError: The matching subclass, from the original.
    """
    try:
        yield
    except InferenceServerException as exc:
        kind, message = _explain(exc, target, model, timeout_s)
        raise kind(message, target=target, model=model) from exc
    except ValueError as exc:
        # grpc's word for a closed channel; everything else is the caller's to see.
        if "closed channel" not in str(exc):
            raise
        message = f"the connection to {target} is closed; open another one and keep it open while it is used"
        raise InvalidInputError(message, target=target, model=model) from exc


def _explain(
    exc: InferenceServerException, target: str, model: str, timeout_s: float
) -> tuple[type[TritonpressError], str]:
    """Returns the class and the message for an error of tritonclient's."""
    said = exc.message() or "no reason given"
    code = (exc.status() or "").removeprefix("StatusCode.")
    who = f"model {model!r} at {target}" if model else f"the server at {target}"
    if code == "NOT_FOUND" or (code in ("UNAVAILABLE", "INVALID_ARGUMENT") and _MODEL_IS_MISSING.search(said)):
        remedy = f"`tritonpress-query health --url {target}` lists what is served"
        return ModelUnavailableError, f"{who} is not available; {remedy}; Triton says: {said}"
    if code in ("INVALID_ARGUMENT", ""):
        return InvalidInputError, f"{who} refuses the request; correct it; Triton says: {said}"
    if code == "DEADLINE_EXCEEDED":
        remedy = "raise `timeout_s`, or see with `tritonpress-query health` whether the server is overloaded"
        return DeadlineExceededError, f"{who} did not answer within {timeout_s:g} s; {remedy}; gRPC says: {said}"
    if code == "UNAVAILABLE" or "http2 header with status" in said:
        remedy = "start one with `tritonpress-serve`, or give the HOST:PORT of Triton's gRPC endpoint (8001 by default)"
        return ServerUnreachableError, f"no Triton server answers at {target}; {remedy}; gRPC says: {said}"
    return InferenceError, f"{who} failed with {code}; its log says more; Triton says: {said}"
