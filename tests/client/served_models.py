"""A repository of small Python models for the embedded Triton, which do what a text tells them: wait, refuse, fail.

They speak the contracts of `recommendation` and of `classification`, so that the typed clients ask them; each answer
says which server gave it.
"""

from __future__ import annotations

import inspect
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from tritonpress_server import TritonServer

CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: {max_batch_size}
input [{{ name: "{input}", data_type: TYPE_STRING, dims: [1] }}]
output [
  {{ name: "{output}", data_type: TYPE_STRING, dims: [{width}] }},
  {{ name: "SCORE", data_type: TYPE_FP32, dims: [{width}] }}
]
instance_group [{{ count: {instances}, kind: KIND_CPU }}]
parameters: {{ key: "server", value: {{ string_value: "{server}" }} }}
parameters: {{ key: "log", value: {{ string_value: "{log}" }} }}
"""


def write_models(
    folder: Path,
    server: str,
    *,
    instances: int = 4,
    max_batch_size: int = 4,
    version: int = 1,
    task: str = "",
    width: int = 3,
) -> Path:
    """Returns the repository after writing the model `recommendation` (or of another task) into it.

    Args:
        folder: The repository.
        server: What the answers call the server; also the name of the file beside `folder` that tells what was run.
        instances: How many requests run at the same time.
        max_batch_size: The most texts of a request.
        version: The model's version.
        task: `recommendation`, the default, or `classification`.
        width: How many answers a text has, at most 4.
    """
    name = task or "recommendation"
    tensors = {"recommendation": ("QUERY", "ITEM_ID"), "classification": ("TEXT", "LABEL")}[name]
    model = folder / name
    (model / str(version)).mkdir(parents=True, exist_ok=True)
    (model / str(version) / "model.py").write_text(inspect.getsource(_model_source()), encoding="utf-8")
    text = CONFIG.format(
        name=name,
        input=tensors[0],
        output=tensors[1],
        server=server,
        log=log_of(folder, server),
        instances=instances,
        width=width,
        max_batch_size=max_batch_size,
    )
    (model / "config.pbtxt").write_text(text, encoding="utf-8")
    return folder


def log_of(folder: Path, server: str) -> Path:
    """Returns where the server's models note what they run."""
    return folder.parent / f"{server}.log"


def executed(folder: Path, server: str) -> list[str]:
    """Returns what the server's models have run, a line an event: `text`, or `cancelled text`."""
    log = log_of(folder, server)
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def _model_source() -> object:
    import instructed_model

    return instructed_model


@dataclass
class Served:
    """A server of instructed models, and what it has run."""

    server: TritonServer
    repository: Path
    name: str

    @property
    def url(self) -> str:
        """The server's gRPC address."""
        return self.server.grpc_url

    @property
    def log(self) -> Path:
        """Where its models note what they run."""
        return log_of(self.repository, self.name)

    def kill(self) -> None:
        """Ends Triton by SIGKILL: nothing is drained, nothing said."""
        os.kill(self.server.pid, signal.SIGKILL)

    def executed(self) -> list[str]:
        """Returns what its models have run, a line an event."""
        return executed(self.repository, self.name)
