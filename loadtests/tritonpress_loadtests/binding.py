"""Which resource binds a stage: what is (nearly) used up where requests wait (Gregg's USE method)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BUSY = 0.85


def busy_shares(stage: Mapping[str, Any], served: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Returns by model the share of the time in which its instances executed something, over the stage."""
    shares = {}
    for row in stage["models"]:
        instances = served.get(row["model"], {}).get("instances", 0)
        busy_ms = sum(row["execution_ms"][size] * count for size, count in row["batch_sizes"].items())
        if instances and stage["duration_s"]:
            shares[row["model"]] = busy_ms / 1e3 / (instances * stage["duration_s"])
    return shares


def binding_resource(stage: Mapping[str, Any], served: Mapping[str, Mapping[str, Any]], cores: int) -> str:
    """Returns in a few words what limits the stage.

    "nothing" where the server could do more, "unknown" where Triton's statistics tell of no request.

    Args:
        stage: Of the results, with `server` filled in.
        served: As `served_models.served_models` returns them.
        cores: Those that the server may use, if its processes are seen; see `ServerWatch.cores`.
    """
    if stage["generator"]["bottleneck"]:
        return "the load generator"
    server = stage["server"]
    for uuid, gauges in server["gpu"].items():
        if gauges.get("utilization", 0.0) > _BUSY:
            return f"the GPU {uuid}: {gauges['utilization']:.0%} used"
    busiest = max(busy_shares(stage, served).items(), key=lambda entry: entry[1], default=("", 0.0))
    cpu = server["machine_cpu_share"]
    if busiest[1] > _BUSY:
        also = f", on a machine whose CPU is {cpu:.0%} used" if server["cpu_cores"] is not None and cpu > _BUSY else ""
        return f"the instances of {busiest[0]}: {busiest[1]:.0%} busy{also}"
    if server["cpu_cores"] is not None and cpu > _BUSY:
        return f"the CPU: {cpu:.0%} of {cores} cores, {server['cpu_cores']:.1f} by the server"
    if not stage["models"]:
        return "unknown: Triton's statistics tell of no request"
    return "nothing: the server could do more"
