"""What is asked of the server itself, before and between stages."""

from __future__ import annotations

import time
from typing import Any

from tritonpress_client import Connection, ModelStatistics, Options

from tritonpress_loadtests.scenario import LoadedScenario
from tritonpress_loadtests.served_models import served_models

_MOST_SNAPSHOTS = 20  # a server that others load never stands still
_SETTLING_S = 0.03


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


def settled_statistics(connection: Connection) -> list[ModelStatistics]:
    """Returns the server's statistics once they stand still: Triton answers a request first and counts it then."""
    latest = connection.statistics()
    for _ in range(_MOST_SNAPSHOTS):
        time.sleep(_SETTLING_S)
        earlier, latest = latest, connection.statistics()
        if latest == earlier:
            break
    return latest
