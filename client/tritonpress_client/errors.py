"""The errors that the client raises, and the one place where they are made from gRPC's.

    TritonpressError              every error of this package; `target`, `model` and `attempts` say where and how often
    ├── InvalidInputError         the argument or the request is at fault: sending it again gains nothing
    ├── AccessDeniedError         the server wants a token, a certificate or a header that it was not given
    ├── ModelUnavailableError     a server answers, and does not serve this model, or not now
    ├── ServerUnreachableError    no Triton answers at this address
    ├── DeadlineExceededError     no answer within the deadline
    ├── ServerError               the server took the request and failed
    └── PartialFailureError       some of many were answered: `results` and `failures` say which

A message is one line: the thing, the target, the model, the remedy, and what Triton itself said. gRPC's own error is
the cause (`__cause__`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import grpc

# Triton's own words for "I am here, the model is not": gRPC's codes alone do not tell them from a lost connection.
_MODEL_IS_MISSING = re.compile(
    r"unknown model|requested model .* is not available|not at ready state|server is stopping|stopped accepting"
    r"|no version is available",
    re.IGNORECASE,
)
_OVERLOADED = re.compile(r"maximum queue size|request timeout expired", re.IGNORECASE)
# gRPC's words for a peer that speaks something else than gRPC, which come with several codes.
_NO_GRPC = re.compile(r"http2 header with status|trying to connect an http1|failed parsing http|HTTP/2.*frame", re.I)
_REGION_LOST = re.compile(r"unable to find shared memory region", re.IGNORECASE)
_RESTRICTED = re.compile(r"protocol is restricted", re.IGNORECASE)
# Said with UNAVAILABLE by a server that polls its repository, or reads it once.
_NO_CONTROL = re.compile(r"explicit model load / unload is not allowed", re.IGNORECASE)


SHOWN = 1_500
"""Characters of a message."""


def one_line(message: str) -> str:
    """Returns a message as one line; of one that is very long the middle is left out, so that the remedy stays."""
    line = " ".join(message.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN // 2]} … {line[-SHOWN // 2 :]}"


class TritonpressError(Exception):
    """Every error of this package.

    Attributes:
        target: The server's address; several, joined by commas, where none in particular is at fault; empty where the
            error was found before any call.
        model: The model's name, or empty.
        attempts: How many times the request was sent.
    """

    def __init__(self, message: str, *, target: str = "", model: str = "", attempts: int = 0) -> None:
        super().__init__(one_line(message))
        self.target = target
        self.model = model
        self.attempts = attempts


class InvalidInputError(TritonpressError):
    """The argument or the request is at fault; the same again will be refused again."""


class AccessDeniedError(TritonpressError):
    """The server wants a token, a certificate or a header that it was not given."""


class ModelUnavailableError(TritonpressError):
    """A server answers, and does not serve this model, or not now."""


class ServerUnreachableError(TritonpressError):
    """No Triton answers at this address."""


class DeadlineExceededError(TritonpressError):
    """No answer came within the deadline."""


class ServerError(TritonpressError):
    """The server took the request and failed."""


class PartialFailureError(TritonpressError):
    """Some of many elements were answered, others not.

    Attributes:
        results: What was answered, in the order of what was asked; None where it failed.
        failures: The error of each element that failed, by its index.
    """

    def __init__(self, name: str, results: Sequence[Any], failures: Mapping[int, TritonpressError]) -> None:
        first = next(iter(failures.values()))
        message = (
            f"{len(failures)} of {len(results)} {name} failed ({', '.join(map(str, list(failures)[:5]))}"
            f"{', …' if len(failures) > 5 else ''}); the others' answers are in `results`; first: {first}"
        )
        super().__init__(message, target=first.target, model=first.model, attempts=first.attempts)
        self.results = results
        self.failures = dict(failures)


def error_kind(error: grpc.RpcError) -> type[TritonpressError]:
    """Returns which of the errors gRPC's is."""
    code, said = error.code(), error.details() or ""
    missing = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT) and _MODEL_IS_MISSING.search(said)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED) or _RESTRICTED.search(said):
        return AccessDeniedError
    if code == grpc.StatusCode.NOT_FOUND or missing or is_overloaded(error):
        return ModelUnavailableError
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED) or _NO_CONTROL.search(said):
        return InvalidInputError
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceededError
    if code == grpc.StatusCode.UNAVAILABLE or _NO_GRPC.search(said):
        return ServerUnreachableError
    return ServerError


def is_overloaded(error: BaseException | None) -> bool:
    """Returns whether gRPC's error says that the server is well and its queue for the model is full, or too long."""
    if not isinstance(error, grpc.RpcError) or error.code() != grpc.StatusCode.UNAVAILABLE:
        return False
    return bool(_OVERLOADED.search(error.details() or ""))


def is_of_a_neighbour(error: grpc.RpcError) -> bool:
    """Returns whether another request is refused that was in the same execution.

    Triton's Python backend checks the lengths in a batch's texts before the model sees them, and refuses all of the
    batch where one is wrong. Ours are right: they are written here.
    """
    refused = error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
    return refused and "incomplete string" in (error.details() or "")


def is_unanswered(error: grpc.RpcError) -> bool:
    """Returns whether the server has said nothing, and may still work on the request."""
    gave_up = error.code() == grpc.StatusCode.CANCELLED
    return gave_up or error_kind(error) in (ServerUnreachableError, DeadlineExceededError)


def is_region_lost(error: grpc.RpcError) -> bool:
    """Returns whether the server has refused a request, unread, since it does not know its shared memory."""
    return bool(_REGION_LOST.search(error.details() or ""))


def translated(
    error: grpc.RpcError, *, target: str, model: str, timeout_s: float, attempts: int = 1
) -> TritonpressError:
    """Returns this package's error for gRPC's; raise it `from` the original.

    Args:
        error: What gRPC raised.
        target: The server's address.
        model: The model's name; empty for calls about the server.
        timeout_s: The deadline of the call in seconds.
        attempts: How many times the request was sent.
    """
    kind, said = error_kind(error), error.details() or "no reason given"
    who = f"model {model!r} at {target}" if model else f"the server at {target}"
    tried = f" in {attempts} attempts" if attempts > 1 else ""
    messages = {
        AccessDeniedError: f"{who} denies access; see `Options.metadata` and `Options.tls` (of commands:"
        f" --admin-token-file, --ca, --certificate); it says: {said}",
        ModelUnavailableError: (
            f"{who} is not available{tried}; `tritonpress-query health --url {target}` lists what is served;"
            f" Triton says: {said}"
        ),
        InvalidInputError: f"{who} refuses the request; correct it; Triton says: {said}",
        DeadlineExceededError: (
            f"{who} did not answer within {timeout_s:g} s{tried}; raise `timeout_s`, or see with `tritonpress-query"
            f" health` whether the server is overloaded; gRPC says: {said}"
        ),
        ServerUnreachableError: (
            f"no Triton server answers at {target}{tried}; start one with `tritonpress-serve`, or give the HOST:PORT of"
            f" Triton's gRPC endpoint (8001 by default); gRPC says: {said}"
        ),
        ServerError: f"{who} failed with {error.code().name}{tried}; its log says more; Triton says: {said}",
    }
    return kind(messages[kind], target=target, model=model, attempts=attempts)
