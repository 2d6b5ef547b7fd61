"""The runs that a plan is made of."""

from __future__ import annotations

import json
from pathlib import Path

from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.results import Results
from tritonpress_loadtests.served_models import repository_sha256


def load_runs(folders: list[Path]) -> list[Results]:
    """Returns the runs' results.

    Raises:
        ScenarioError: A folder holds none, or the runs are of different repositories, mixes or machines.
    """
    runs = []
    for folder in folders:
        path = folder / "results.json"
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            cause = exc.strerror if isinstance(exc, OSError) else exc
            raise ScenarioError(
                f"cannot read {path}: {cause}; give a folder that `tritonpress-load run` wrote"
            ) from exc
        if not isinstance(run, dict) or run.get("schema") != "tritonpress-load/3":
            raise ScenarioError(f"{path} is of another version; run its scenario again with this one")
        runs.append(run)
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
    return json.dumps([[request["model"], round(request["weight"] / total, 6)] for request in requests])


def _machine(run: Results) -> str:
    return f"{run['machine']['cpu']} {run['machine']['cores']}"
