"""How servers are: their versions, their models, whether these answer, and what they have served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tritonpress_client.connection import Connection
from tritonpress_client.errors import TritonpressError
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


def since(before: Health | TritonpressError, after: Health | TritonpressError) -> Health | TritonpressError:
    """Returns the later state, with what happened in between; of a model that was loaded in between, since then."""
    if not isinstance(before, Health) or not isinstance(after, Health):
        return after
    counted = {(entry.name, entry.version): entry for entry in before.statistics}
    statistics = []
    for entry in after.statistics:
        earlier = counted.get((entry.name, entry.version))
        # A server that was started anew counts from 0.
        known = earlier is not None and earlier.success.count <= entry.success.count
        statistics.append(entry - earlier if known and earlier is not None else entry)
    return replace(after, statistics=statistics)


def table(states: Sequence[Health | TritonpressError], window_s: float = 0.0) -> str:
    """Returns the states for people: a line on each server, and one table of all models.

    Args:
        states: Each server's, or the error of one that could not be asked.
        window_s: Over how many seconds was counted; 0 for all since the models were loaded.
    """
    heads, reasons, rows = [], [], []
    for state in states:
        if not isinstance(state, Health):
            heads.append(f"{state.target}: {state}")
            continue
        heads.append(f"Triton {state.server.version} at {state.url}: {'ready' if state.ready else 'not ready'}")
        served = {(entry.name, entry.version): entry for entry in state.statistics}
        for model in state.models:
            rows.append((state.url, *_row(model, served.get((model.name, model.version)))))
        reasons += [f"{state.url}  {model.name}: {model.reason}" for model in state.models if model.reason]
    counted = f"counted for {window_s:g} s" if window_s else "counted since the models were loaded"
    body = _aligned([("server", *_COLUMNS), *rows]) if rows else ["no models"]
    return "\n".join([*heads, "", *body, *reasons, counted])


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column <= _TEXT_COLUMNS else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


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
