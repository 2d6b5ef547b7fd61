"""How a server is: its version, its models, whether they answer, and what they have served."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tritonpress_client.connection import Connection
from tritonpress_client.metadata import ModelStatus, ServerMetadata
from tritonpress_client.statistics import ModelStatistics

_COLUMNS = ("model", "version", "state", "answered", "failed", "executions", "rows/execution", "queue ms", "compute ms")
_TEXT_COLUMNS = 3


@dataclass(frozen=True)
class Health:
    """The state of a server at one moment."""

    url: str
    server: ServerMetadata
    server_ready: bool
    models: list[ModelStatus]
    statistics: list[ModelStatistics]

    @property
    def ready(self) -> bool:
        """Whether the server and each of its models answer; a model that was unloaded on purpose does not count."""
        return self.server_ready and all(model.ready or model.reason == "unloaded" for model in self.models)

    def as_dict(self) -> dict[str, Any]:
        """Returns the same as plain values, for JSON."""
        return {"ready": self.ready, **asdict(self)}

    def table(self) -> str:
        """Returns the same for people: a line on the server and a table of its models."""
        served = {(entry.name, entry.version): entry for entry in self.statistics}
        rows = [_COLUMNS, *(_row(model, served.get((model.name, model.version))) for model in self.models)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < _TEXT_COLUMNS else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        reasons = [f"{model.name}: {model.reason}" for model in self.models if model.reason]
        head = f"Triton {self.server.version} at {self.url}: {'ready' if self.ready else 'not ready'}"
        return "\n".join([head, "", *(lines if self.models else ["no models"]), *reasons])


def health(connection: Connection) -> Health:
    """Returns the state of the server at the other end.

    Raises:
        TritonpressError: The server cannot be asked.
    """
    return Health(
        url=connection.address,
        server=connection.server_metadata(),
        server_ready=connection.ready(),
        models=connection.models(),
        statistics=connection.statistics(),
    )


def _row(model: ModelStatus, served: ModelStatistics | None) -> tuple[str, ...]:
    names = (model.name, model.version or "-", model.state or "NOT LOADED")
    if served is None:
        return (*names, *["-"] * (len(_COLUMNS) - len(names)))
    compute_us = served.compute_input.mean_us + served.compute_infer.mean_us + served.compute_output.mean_us
    rows_per_execution = served.inference_count / served.execution_count if served.execution_count else 0.0
    return (
        *names,
        f"{served.success.count}",
        f"{served.fail.count}",
        f"{served.execution_count}",
        f"{rows_per_execution:.2f}",
        f"{served.queue.mean_us / 1e3:.2f}",
        f"{compute_us / 1e3:.2f}",
    )
