"""Reads and checks a scenario: who asks what, how many at once, for how long, and what is good enough."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from tritonpress_loadtests import workloads
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.workloads import Workload


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stage(_Settings):
    """A number of users held for a time."""

    users: int = Field(ge=1, le=10_000)
    """How many users ask at once; each sends its next request when it has the answer to the last."""
    duration_s: float = Field(gt=0, le=86_400)
    """How long requests are sent, in seconds."""


class Slo(_Settings):
    """What every stage must reach; a run that misses it ends with status 1."""

    p99_ms: float | None = Field(default=None, gt=0)
    """The 99th percentile of the latency in ms; no limit by default."""
    error_rate: float = Field(default=0.01, ge=0, le=1)
    """The share of requests that may fail."""


class Scenario(_Settings):
    """A load test as its file says it."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    """What reports call it."""
    workload: str
    """What is asked for: the name of a file in `tritonpress_loadtests/workloads`."""
    model: str = Field(min_length=1)
    """The model's name on the server."""
    queries: str
    """JSONL of queries, relative to the scenario's file."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    """Held one after the other."""
    warm_up_s: float = Field(default=3.0, ge=0, le=3_600)
    """How long the largest number of users asks before anything is counted, in seconds."""
    timeout_s: float = Field(default=5.0, gt=0, le=600)
    """The deadline of each request in seconds; a request without an answer by then has failed."""
    seed: int = 0
    """Fixes which user asks which queries in which order."""
    slo: Slo = Slo()
    """What is good enough."""


@dataclass(frozen=True)
class LoadedScenario:
    """A checked scenario with what it refers to."""

    path: Path
    scenario: Scenario
    workload: Workload
    queries: list[dict[str, str]]
    sha256: str
    """Of the scenario's file and its queries, so that two runs of the same test can be told."""


def load_scenario(path: Path) -> LoadedScenario:
    """Returns the scenario with its workload and its queries.

    Raises:
        ScenarioError: A file is missing or unreadable, a key is unknown, a value is out of range, or there is no query.
    """
    text = _read(path, "scenario")
    try:
        scenario = Scenario.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as exc:
        raise ScenarioError(f"{path} is not YAML: {' '.join(str(exc).split())}") from exc
    except ValidationError as exc:
        raise ScenarioError(f"{path}: {_explain(exc.errors()[0])}") from exc
    try:
        workload = workloads.load(scenario.workload)
    except ScenarioError as exc:
        raise ScenarioError(f"{path}: {exc}") from exc
    queries_path = path.parent / scenario.queries
    queries_text = _read(queries_path, "`queries`")
    queries = _parse_queries(queries_path, queries_text, workload.KEYS)
    sha256 = hashlib.sha256(f"{text}\0{queries_text}".encode()).hexdigest()
    return LoadedScenario(path, scenario, workload, queries, sha256)


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ScenarioError(f"cannot read {what} {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ScenarioError(f"{what} {path} is not UTF-8 ({exc.reason} at byte {exc.start}); convert it") from exc


def _parse_queries(path: Path, text: str, keys: tuple[str, ...]) -> list[dict[str, str]]:
    """Returns the lines' entries, cut to the keys that the workload sends; empty lines are left out."""
    queries = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as exc:
            raise ScenarioError(f"{path}:{number} is not JSON ({exc}); write one object a line") from exc
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in keys):
            raise ScenarioError(f"{path}:{number} must be an object with text under: {', '.join(keys)}")
        queries.append({key: entry[key] for key in keys})
    if not queries:
        raise ScenarioError(f"`queries` {path} holds no query; write one object a line with: {', '.join(keys)}")
    return queries


def _explain(error: ErrorDetails) -> str:
    """Returns what is wrong in one line: the key's path, the rule, the value."""
    location = error["loc"]
    where = ".".join(str(part) for part in location)
    if not location:
        return f"a scenario must be a mapping of keys, with: {', '.join(Scenario.model_fields)}"
    if error["type"] == "extra_forbidden":
        parts: dict[str, type[_Settings]] = {"stages": Stage, "slo": Slo}
        owner = parts.get(str(location[0]), Scenario) if len(location) > 1 else Scenario
        return f"`{where}` is no key of a scenario; allowed here: {', '.join(owner.model_fields)}"
    if error["type"] == "missing":
        return f"`{where}` is missing; add it"
    rule = error["msg"][0].lower() + error["msg"][1:]
    return f"`{where}`: {rule}, got {error['input']!r}"
