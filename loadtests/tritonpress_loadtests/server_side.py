"""What is asked of the server itself, before and between stages."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tritonpress_client import Connection, ModelStatistics, Options

from tritonpress_loadtests.scenario import LoadedScenario
from tritonpress_loadtests.served_models import served_models

_MOST_SNAPSHOTS = 20  # a server that others load never stands still
_SETTLING_S = 0.03
_MOST_UNCOUNTED_S = 5.0


def check(loaded: LoadedScenario, url: str, options: Options) -> dict[str, Any]:
    """Returns `server` and `served` of the results, after asking whether each model speaks its workload's contract.

    Raises:
        TritonpressError: The server does not answer, or a model is not there or is another workload's.
    """
    timeout_s = loaded.scenario.timeout_s
    for kind in loaded.requests:
        with kind.workload.connect(url, model=kind.request.model, timeout_s=timeout_s, options=options) as client:
            kind.workload.check(client)
    with Connection(url, timeout_s=timeout_s, options=options) as connection:
        server = connection.server_metadata()
        served = served_models(connection)
        # Asked before the load, so that a server that guards them is told of at once.
        connection.statistics()
    return {"server": {"name": server.name, "version": server.version}, "served": served}


def settled_statistics(
    connection: Connection, *, before: Sequence[ModelStatistics] = (), answered: Mapping[str, int] | None = None
) -> list[ModelStatistics]:
    """Returns the server's statistics once they stand still: Triton answers a request first and counts it then.

    Args:
        connection: To the server.
        before: Earlier statistics.
        answered: By model, how many requests have been answered since; that they are counted is waited for.
    """
    end = time.monotonic() + _MOST_UNCOUNTED_S
    latest, snapshots, settled = connection.statistics(), 0, False
    while not settled or (not are_counted(before, latest, answered or {}) and time.monotonic() < end):
        time.sleep(_SETTLING_S)
        earlier, latest = latest, connection.statistics()
        snapshots += 1
        settled = latest == earlier or snapshots >= _MOST_SNAPSHOTS
    return latest


def are_counted(
    before: Sequence[ModelStatistics], latest: Sequence[ModelStatistics], answered: Mapping[str, int]
) -> bool:
    """Says whether the server has counted so many answers since `before`, by model.

    Never, where other servers answered some of them, or the model was loaded anew meanwhile.
    """
    grown = {model: _successes(latest, model) - _successes(before, model) for model in answered}
    # A server that restarted meanwhile counts from 0 again.
    return not any(0 <= grown[model] < count for model, count in answered.items())


def _successes(statistics: Sequence[ModelStatistics], model: str) -> int:
    return sum(entry.success.count for entry in statistics if entry.name == model)
