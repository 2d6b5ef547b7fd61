"""Scenarios for the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REQUEST = {"workload": "recommendation", "model": "recommendation", "queries": "queries.jsonl"}
# The locustfile's users; ends once so many of them have their first answer.
_ASKED = """
import runpy
import gevent
from locust import events
LoadedUser = runpy.run_path({locustfile!r})["LoadedUser"]
asked = set()

@events.init.add_listener
def watch(environment, **_):
    @environment.events.request.add_listener
    def note(**_):
        if len(asked) < {users}:
            asked.add(gevent.getcurrent())
            if len(asked) == {users}:
                gevent.spawn(environment.runner.quit)
"""


def write_scenario(folder: Path, *, request: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Returns the path of a scenario of two short stages; None takes a key away.

    Args:
        folder: Where it is written.
        request: Changes the keys of the one kind of request.
        changes: Change top-level keys.
    """
    scenario: dict[str, Any] = {
        "name": "short",
        "requests": [_changed(REQUEST, request or {})],
        "stages": [{"users": 1, "duration_s": 1}, {"users": 6, "duration_s": 1.5}],
        "warm_up_s": 0.3,
        # Tests share their machine: what the generator says of itself is tested by itself.
        "generator": {"cpu_share": 100, "lag_share": 1000},
    }
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(_changed(scenario, changes)), encoding="utf-8")
    return path


def write_noop_scenario(folder: Path, **changes: Any) -> Path:
    """Returns the path of a scenario that asks the model of `noop_model`."""
    (folder / "texts.jsonl").write_text('{"text": "one"}\n{"text": "another text"}\n')
    request = {"workload": "classification", "model": "noop", "queries": "texts.jsonl"}
    return write_scenario(folder, requests=[request], **changes)


def plain_locust(scenario: Path, url: str, *arguments: str, users: int) -> dict[str, Any]:
    """Returns what Locust says of the one kind of request, after each of the locustfile's users has asked."""
    watched = scenario.parent / "watched_locustfile.py"
    locustfile = Path(__file__).parents[2] / "loadtests" / "locustfile.py"
    watched.write_text(_ASKED.format(locustfile=str(locustfile), users=users), encoding="utf-8")
    load = ["--headless", "--json", "-u", str(users), "-r", str(users)]
    done = subprocess.run(
        [sys.executable, "-m", "locust", "-f", str(watched), *load, "--host", url, *arguments],
        env={**os.environ, "TRITONPRESS_SCENARIO": str(scenario)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)
    return dict(entry)


def _changed(entry: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (entry | changes).items() if value is not None}
