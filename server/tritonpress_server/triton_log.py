"""Reading Triton's log: which model failed to load and why, and the lines to show when nothing better is known."""

import json
import re
from pathlib import Path

from tritonpress_server.errors import (
    ModelRepositoryError,
    PortInUseError,
    ServerError,
    ServerStartError,
    StubStartError,
)

TAIL_LINES = 12
TAIL_WIDTH = 300

# Both formats of the log: `E1128 18:55:17.66 …] "…"`, and `2026-11-28T19:29:48Z E …] "…"`.
_ERROR = re.compile(r'^(?:E\d{4}|\S+Z E) [^\]]*\] (".*")$')
# In this order: an ensemble fails because one of its steps did, which is what the reader must hear first.
_FAILURES = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"failed to load '(?P<model>[^']*)' version \d+: (?P<reason>.*)",
        r"Poll failed for model directory '(?P<model>[^']*)': (?P<reason>.*)",
        r"failed to poll model '(?P<model>[^']*)': (?P<reason>.*)",
        r"error: creating server: .*?load failed for model '(?P<model>[^']*)': (?P<reason>.*)",
    )
)
_LAST_WORD = re.compile(r"^error: creating server: .*", re.DOTALL | re.MULTILINE)
_PROTOBUF = re.compile(r"^\[libprotobuf ERROR .*?Error parsing text-format [\w.]+: (?P<where>.*)$")
_ADDRESS_IN_USE = re.compile(
    r"address already in use|failed to start (?:GRPC|HTTP|metrics) service|Unavailable - Socket '", re.IGNORECASE
)
_LOADING = re.compile(r'"loading: (?P<model>.+):\d+"$', re.MULTILINE)
_LOADED = re.compile(r"\"successfully loaded '(?P<model>[^']*)'\"$", re.MULTILINE)
# 128 + SIGSEGV: what release 24.10 does when a Python-hosted model answers its warm-up request with an error.
_CRASHED = 139
# 128 + SIGABRT.
_ABORTED = 134
_STUB_LOCK = "boost::interprocess::lock_exception"
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_USAGE = "Usage: tritonserver"
# Triton says what is wrong and not what to do.
_REMEDIES = {
    "has kind KIND_GPU but no GPUs are available": (
        "serve it where an NVIDIA GPU is, or build the recipe with an engine for CPUs such as onnxruntime"
    ),
}
# What Triton says on every machine without a GPU, and its tables.
_NOISE = re.compile(r"CUDA|CudaDriver|NVML|DCGM|pinned system memory|^[|+]|^\s*$|^I\d{4}|^\S+Z I ")


def read_log(path: Path, *, offset: int = 0) -> str:
    """The text of the log from byte `offset` on."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace")


def model_failures(log: str) -> dict[str, str]:
    """Triton's reason, in one line, for each model that failed to load; the cause comes before what depends on it."""
    messages = []
    where = ""
    for line in log.splitlines():
        if found := _PROTOBUF.match(line):
            where = f": {found['where']}"
        elif error := _ERROR.match(line):
            message = _unquoted(error[1])
            messages.append(message + where if "failed to read text proto" in message else message)
    messages += _LAST_WORD.findall(log)
    failures: dict[str, str] = {}
    for pattern in _FAILURES:
        for message in messages:
            if failed := pattern.match(message):
                failures.setdefault(failed["model"], one_line(failed["reason"]))
    return failures


def why_it_ended(log: str, *, path: Path | None, status: int) -> ServerError:
    """The error that says why Triton, which ended with `status`, did not become ready."""
    ending = f"log {path} ends:\n{tail(log)}"
    if _ADDRESS_IN_USE.search(log):
        return PortInUseError(f"a port was taken while Triton started; choose other ports; {ending}")
    if failures := model_failures(log):
        (model, reason), *others = failures.items()
        also = f" (also failed: {', '.join(name for name, _ in others)})" if others else ""
        return ModelRepositoryError(f"model {model!r} failed to load: {reason}{also}; log: {path}")
    if status == _CRASHED and (loading := sorted(set(_LOADING.findall(log)) - set(_LOADED.findall(log)))):
        return ModelRepositoryError(
            f"model {' or '.join(map(repr, loading))} made Triton crash while loading, as a failing warm-up request "
            f"does; mend its model_warmup or leave it out; {ending}"
        )
    kind = StubStartError if status == _ABORTED and _STUB_LOCK in log else ServerStartError
    return kind(f"Triton ended with status {status} before it was ready; {ending}")


def tail(log: str) -> str:
    """The last lines that say something, each indented."""
    # An unknown option makes it print all its help after the one line that matters.
    lines = [line for line in _COLOUR.sub("", log.partition(_USAGE)[0]).splitlines() if not _NOISE.search(line)]
    return "\n".join(f"  {line[:TAIL_WIDTH]}" for line in lines[-TAIL_LINES:]) or "  (the log is empty)"


def one_line(reason: str) -> str:
    """A reason of Triton's without the Python traceback and the line breaks, and the remedy where that is known."""
    reason = reason.split("\n\nAt:\n", maxsplit=1)[0].replace("TritonModelException: ", "")
    remedies = [f"; {remedy}" for text, remedy in _REMEDIES.items() if text in reason]
    return " ".join(reason.split()).rstrip("; ") + "".join(remedies)


def _unquoted(message: str) -> str:
    try:
        return str(json.loads(message, strict=False))
    except json.JSONDecodeError:
        return message.strip('"')
