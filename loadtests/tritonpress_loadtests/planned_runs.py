"""The runs that a plan is made of."""

from __future__ import annotations

import json
from pathlib import Path

from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.results import Results
from tritonpress_loadtests.results_file import PlannedRun, read_results
from tritonpress_loadtests.served_models import repository_sha256


def load_runs(folders: list[Path]) -> list[Results]:
    """Returns the runs' results.

    Raises:
        ScenarioError: A folder's cannot be read, or the runs are of different repositories, mixes or machines. Which
            machine serves is known where the load was made on it.
    """
    runs = [read_results(folder, PlannedRun) for folder in folders]
    for name, key in (("repositories", _repository), ("mixes of requests", _mix), ("machines", _machine)):
        kinds = {key(run) for run in runs}
        if len(kinds) > 1:
            raise ScenarioError(f"the runs are of {len(kinds)} different {name}; plan each with its own runs")
    return runs


def _repository(run: Results) -> str:
    return repository_sha256(run["served"], without_instances=True)


def _mix(run: Results) -> str:
    requests = run["scenario"]["requests"]
    total = sum(request["weight"] for request in requests)
    mix = [
        [request["model"], round(request["weight"] / total, 6)]
        + [[up_to, round(share, 6)] for up_to, share in request["words_up_to"].items()]
        for request in sorted(requests, key=lambda request: request["model"])
    ]
    return json.dumps(mix)


def served_beside_the_load(run: Results) -> bool:
    """Returns whether the server ran on the machine that made the load, of which the results tell."""
    return all((stage.get("server") or {}).get("cpu_cores") is not None for stage in run["stages"])


def _machine(run: Results) -> str:
    return f"{run['machine']['cpu']} {run['machine']['cores']}" if served_beside_the_load(run) else ""
