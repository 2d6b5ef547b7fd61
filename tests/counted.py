"""What Triton has counted: it counts a request, and its execution, after having answered it."""

from __future__ import annotations

import time

from tritonpress_client import Connection, ModelStatistics


def settled(connection: Connection, model: str) -> ModelStatistics:
    """The statistics of `model` once they stand still: what others have asked before may be counted late."""
    end = time.monotonic() + 60
    (now,) = connection.statistics(model)
    while True:
        before = now
        time.sleep(0.1)
        (now,) = connection.statistics(model)
        if now == before:
            return now
        assert time.monotonic() < end, f"{model} is asked on"


def counted(
    connection: Connection, model: str, requests: int, before: ModelStatistics | None = None
) -> ModelStatistics:
    """The statistics of `model` since `before` as soon as `requests` answers are in them, or as they are after 10 s.

    Triton adds an execution to the batches' sizes last of all, and does so for as many rows as it has counted before.
    """
    end = time.monotonic() + 10
    while True:
        (now,) = connection.statistics(model)
        spent = now if before is None else now - before
        rows = sum(size * count for size, count in spent.batch_sizes.items())
        if (spent.success.count >= requests and rows >= spent.inference_count) or time.monotonic() > end:
            return spent
        time.sleep(0.01)
