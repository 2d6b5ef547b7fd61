"""Reads and checks a scenario: who asks what, how many at once, for how long, and what is good enough."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from tritonpress_loadtests import workloads
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.query_files import Query
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


class Request(_Settings):
    """A kind of request: what one model is asked, and how often beside the others."""

    workload: str
    """What is asked for: the name of a file in `tritonpress_loadtests/workloads`."""
    model: str = Field(min_length=1)
    """The model's name on the server; each model has one entry."""
    queries: str
    """The file of queries, relative to the scenario's; the workload says which formats it reads."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """How likely a request is of this kind: its weight over the sum of all."""
    slo: Slo | None = None
    """What every stage must reach for this model, beside what the scenario asks for all; nothing by default."""


class Scenario(_Settings):
    """A load test as its file says it."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    """What reports call it."""
    requests: Annotated[tuple[Request, ...], Field(min_length=1)]
    """What users ask; each request is drawn by weight."""
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
class LoadedRequest:
    """A kind of request with what it refers to."""

    request: Request
    workload: Workload
    queries: list[Query]


@dataclass(frozen=True)
class LoadedScenario:
    """A checked scenario with what it refers to."""

    path: Path
    scenario: Scenario
    requests: list[LoadedRequest]
    """In the scenario's order."""
    sha256: str
    """Of the scenario's file and its queries, so that two runs of the same test can be told."""

    @property
    def models(self) -> list[str]:
        """The models' names in the scenario's order."""
        return [request.model for request in self.scenario.requests]

    def draws(self, user: int) -> Iterator[tuple[LoadedRequest, Query]]:
        """Yields without end what the user of that number asks; the scenario's seed fixes it."""
        chance = random.Random(f"{self.scenario.seed} {user}")
        weights = list(accumulate(request.weight for request in self.scenario.requests))
        while True:
            (drawn,) = chance.choices(self.requests, cum_weights=weights)
            yield drawn, chance.choice(drawn.queries)


def load_scenario(path: Path) -> LoadedScenario:
    """Returns the scenario with its workloads and their queries.

    Raises:
        ScenarioError: A file is missing or unreadable, a key is unknown, a value is out of range, a model is named
            twice, or there is no query.
    """
    text = _read(path, "scenario")
    try:
        scenario = Scenario.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as exc:
        raise ScenarioError(f"{path} is not YAML: {' '.join(str(exc).split())}") from exc
    except ValidationError as exc:
        raise ScenarioError(f"{path}: {_explain(exc.errors()[0])}") from exc
    sha256 = hashlib.sha256(text.encode())
    requests: list[LoadedRequest] = []
    for number, request in enumerate(scenario.requests):
        if request.model in [other.model for other in scenario.requests[:number]]:
            raise ScenarioError(
                f"{path}: `requests.{number}.model` {request.model!r} is named twice; merge the entries"
            )
        try:
            workload = workloads.load(request.workload)
        except ScenarioError as exc:
            raise ScenarioError(f"{path}: `requests.{number}`: {exc}") from exc
        queries_path = path.parent / request.queries
        queries_text = _read(queries_path, "`queries`")
        sha256.update(f"\0{queries_text}".encode())
        requests.append(LoadedRequest(request, workload, _read_queries(queries_path, queries_text, workload)))
    return LoadedScenario(path, scenario, requests, sha256.hexdigest())


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise ScenarioError(f"cannot read {what} {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ScenarioError(f"{what} {path} is not UTF-8 ({exc.reason} at byte {exc.start}); convert it") from exc


def _read_queries(path: Path, text: str, workload: Workload) -> list[Query]:
    reader = workload.READERS.get(path.suffix)
    if reader is None:
        suffixes = " or ".join(workload.READERS)
        raise ScenarioError(f"`queries` {path} must end in {suffixes}, got {path.name!r}; convert or rename it")
    queries = reader(path, text)
    if not queries:
        raise ScenarioError(f"`queries` {path} holds no query; write at least one")
    return queries


def _explain(error: ErrorDetails) -> str:
    """Returns what is wrong in one line: the key's path, the rule, the value."""
    location = error["loc"]
    where = ".".join(str(part) for part in location)
    if not location:
        return f"a scenario must be a mapping of keys, with: {', '.join(Scenario.model_fields)}"
    if error["type"] == "extra_forbidden":
        parts: dict[str, type[_Settings]] = {"stages": Stage, "requests": Request, "slo": Slo}
        owner = next((parts[str(key)] for key in reversed(location[:-1]) if key in parts), Scenario)
        return f"`{where}` is no key of a scenario; allowed here: {', '.join(owner.model_fields)}"
    if error["type"] == "missing":
        return f"`{where}` is missing; add it"
    rule = error["msg"][0].lower() + error["msg"][1:]
    return f"`{where}`: {rule}, got {error['input']!r}"
