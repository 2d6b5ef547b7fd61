"""Scenarios for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def write_scenario(folder: Path, **changes: Any) -> Path:
    """Returns the path of a scenario of two short stages with top-level keys changed; None takes a key away."""
    scenario: dict[str, Any] = {
        "name": "short",
        "workload": "recommendation",
        "model": "recommendation",
        "queries": "queries.jsonl",
        "stages": [{"users": 1, "duration_s": 1}, {"users": 6, "duration_s": 1.5}],
        "warm_up_s": 0.3,
    }
    scenario = {key: value for key, value in (scenario | changes).items() if value is not None}
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(scenario), encoding="utf-8")
    return path
