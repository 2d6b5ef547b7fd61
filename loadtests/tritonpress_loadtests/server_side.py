"""What is asked of the server itself, before and between stages."""

from __future__ import annotations

import time
from typing import Any

import grpc
from tritonpress_client import Connection, ModelStatistics, ServerUnreachableError

from tritonpress_loadtests.scenario import LoadedScenario
from tritonpress_loadtests.served_models import served_models

_MOST_SNAPSHOTS = 20  # a server that others load never stands still
_SETTLING_S = 0.03


def check(loaded: LoadedScenario, url: str) -> dict[str, Any]:
    """Returns `server` and `served` of the results, after asking whether each model speaks its workload's contract.

    Raises:
        TritonpressError: The server does not answer, or a model is not there or is another workload's.
    """
    timeout_s = loaded.scenario.timeout_s
    for kind in loaded.requests:
        with kind.workload.connect(url, model=kind.request.model, timeout_s=timeout_s) as client:
            kind.workload.check(client)
    with Connection(url, timeout_s=timeout_s) as connection:
        server = connection.server_metadata()
    try:
        served = served_models(url, timeout_s=timeout_s)
    except grpc.RpcError as exc:
        raise ServerUnreachableError(f"{url} does not say its models' configs: {exc}") from exc
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
