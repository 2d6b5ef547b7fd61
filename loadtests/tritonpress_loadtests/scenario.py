"""Reads and checks a scenario: who asks what, how many at once, for how long, and what is good enough."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from tritonpress_server import strict_yaml

from tritonpress_loadtests import arrivals, stages, wire, workloads
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.query_files import Query, WordHistogram, count_words, length_class, weights_by_words
from tritonpress_loadtests.settings import Settings
from tritonpress_loadtests.stages import Shape, Stage
from tritonpress_loadtests.workloads import Workload


class Slo(Settings):
    """What every stage must reach; a run that misses it ends with status 1."""

    p99_ms: float | None = Field(default=None, gt=0)
    """The 99th percentile of the latency in ms; no limit by default. A request that failed is beyond every limit."""
    p999_ms: float | None = Field(default=None, gt=0)
    """The 99.9th percentile."""
    error_rate: float = Field(default=0.01, ge=0, le=1)
    """The share of requests that may fail."""


class GeneratorLimits(Settings):
    """Beyond these the generator's own slowness is in the figures, and the run fails."""

    cpu_share: float = Field(default=0.9, gt=0)
    """CPU time over wall time of the busiest generator process."""
    lag_share: float = Field(default=0.2, gt=0)
    """How late the generator's own loop was (its p99) over the p99 that it measured; 1 ms is never too late."""


class Request(Settings):
    """A kind of request: what one model is asked, and how often beside the others."""

    workload: str
    """What is asked for: the name of a file in `tritonpress_loadtests/workloads`."""
    model: str = Field(min_length=1)
    """The model's name on the server; each model has one entry."""
    queries: str
    """The file of queries, relative to the scenario's; the workload says which formats it reads."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """How likely a request is of this kind: its weight over the sum of all."""
    words: WordHistogram | None = None
    """How long the drawn queries are, by their words; by default each query of the file is equally likely."""
    slo: Slo | None = None
    """What every stage must reach for this model, beside what the scenario asks for all; nothing by default."""


class Scenario(Settings):
    """A load test as its file says it."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    """What reports call it."""
    requests: Annotated[tuple[Request, ...], Field(min_length=1)]
    """What users ask; each request is drawn by weight."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] | None = None
    """Held one after the other."""
    shape: Shape | None = None
    """Or a course of the load that makes its own stages."""
    warm_up_s: float = Field(default=3.0, ge=0, le=3_600)
    """How long the largest number of users asks before anything is counted, in seconds."""
    timeout_s: float = Field(default=5.0, gt=0, le=600)
    """The deadline of each request in seconds; a request without an answer by then has failed."""
    max_in_flight: int = Field(default=10_000, ge=1, le=1_000_000)
    """In an open loop, no more requests wait for answers; those that are due wait unsent, which is counted."""
    seed: int = 0
    """Fixes the schedules, and which user asks which queries in which order."""
    slo: Slo = Slo()
    """What is good enough."""
    generator: GeneratorLimits = GeneratorLimits()
    """What tells a load generator that was the bottleneck itself."""

    @model_validator(mode="after")
    def _has_a_course(self) -> Scenario:
        if (self.stages is None) == (self.shape is None):
            raise ValueError("a scenario has `stages` or a `shape`: one of them")
        if self.shape is None or self.slo.p99_ms is not None:
            return self
        if self.shape.breakpoint and self.slo.p999_ms is None:
            raise ValueError("a search for a breakpoint needs `slo.p99_ms` or `slo.p999_ms`")
        if self.shape.recovery:
            raise ValueError(
                "a recovery needs `slo.p99_ms`: it is told by windows of time, of which each has too few requests for"
                " p99.9"
            )
        return self

    def fixed_stages(self) -> list[Stage]:
        """Returns the stages that are known beforehand; a search for a breakpoint has none."""
        return list(self.stages) if self.stages is not None else self.shape.fixed_stages() if self.shape else []


class Drawn(NamedTuple):
    """A request as it is drawn."""

    place: int
    """Of the model that is asked, in the scenario's order."""
    up_to: int
    """The query's `length_class`."""
    payload: bytes
    """What is sent."""


@dataclass(frozen=True)
class LoadedRequest:
    """A kind of request with what it refers to."""

    request: Request
    workload: Workload
    queries: list[Query]
    payloads: list[bytes]
    """The queries as they are sent."""
    lengths: list[int]
    """Their numbers of words."""
    classes: list[int]
    """Their classes of lengths (`length_class`)."""
    cumulative: list[float]
    """Cumulative weights of the queries."""

    def drawn_words(self) -> list[int]:
        """Returns the number of words of queries that can be drawn, each as often as it is likely, of 10,000."""
        return random.Random(0).choices(self.lengths, cum_weights=self.cumulative, k=10_000)

    def class_shares(self) -> dict[int, float]:
        """Returns how likely a query is of each `length_class`, the shortest first."""
        weights: defaultdict[int, float] = defaultdict(float)
        for up_to, weight in zip(self.classes, np.diff(self.cumulative, prepend=0.0).tolist(), strict=True):
            weights[up_to] += weight
        return {up_to: weights[up_to] / self.cumulative[-1] for up_to in sorted(weights) if weights[up_to] > 0}


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

    @property
    def slo_by_model(self) -> dict[str, Slo]:
        """The limits of single models."""
        return {request.model: request.slo for request in self.scenario.requests if request.slo is not None}

    def draws(self, drawer: str) -> Iterator[Drawn]:
        """Yields requests without end, as drawn for `drawer`."""
        chance = random.Random(f"{self.scenario.seed} {drawer}")
        weights = list(accumulate(request.weight for request in self.scenario.requests))
        places = range(len(self.requests))
        while True:
            (place,) = chance.choices(places, cum_weights=weights)
            kind = self.requests[place]
            (which,) = chance.choices(range(len(kind.payloads)), cum_weights=kind.cumulative)
            yield Drawn(place, kind.classes[which], kind.payloads[which])


def load_scenario(path: Path) -> LoadedScenario:
    """Returns the scenario with its workloads and their queries.

    Raises:
        ScenarioError: A file is missing or unreadable, a key is unknown, a value is out of range, a model is named
            twice, or there is no query.
    """
    text = _read(path, "scenario")
    try:
        scenario = Scenario.model_validate(strict_yaml.load(text))
        # A shape's stages have rules too.
        planned = scenario.fixed_stages()
    except strict_yaml.StrictYamlError as exc:
        raise ScenarioError(f"{path} is not YAML that can be read: {exc}") from exc
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
        queries = _read_queries(queries_path, queries_text, workload)
        requests.append(_loaded_request(request, workload, queries, f"{path}: `requests.{number}.words`"))
    for stage in planned:
        if isinstance(stage.arrivals, arrivals.ByReplay):
            moments = path.parent / stage.arrivals.replay.file
            sha256.update(arrivals.replayed(moments).tobytes())
    return LoadedScenario(path, scenario, requests, sha256.hexdigest())


def _loaded_request(request: Request, workload: Workload, queries: list[Query], where: str) -> LoadedRequest:
    payloads = [
        wire.encoded_request(
            request.model, {name: query[key] for name, key in workload.INPUTS.items()}, workload.OUTPUTS
        )
        for query in queries
    ]
    lengths = [count_words(query) for query in queries]
    try:
        weights = weights_by_words(request.words, lengths)
    except ScenarioError as exc:
        raise ScenarioError(f"{where}: {exc}") from exc
    classes = [length_class(words) for words in lengths]
    return LoadedRequest(request, workload, queries, payloads, lengths, classes, list(accumulate(weights)))


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
    # Alternatives of a union have names of types in their path, which are no keys.
    location = tuple(
        part for part in error["loc"] if not (isinstance(part, str) and (part[:1].isupper() or "[" in part))
    )
    where = ".".join(str(part) for part in location)
    if not location and error["type"] != "value_error":
        return f"a scenario must be a mapping of keys, with: {', '.join(Scenario.model_fields)}"
    if error["type"] == "extra_forbidden":
        owner = next((_PARTS[str(key)] for key in reversed(location[:-1]) if key in _PARTS), Scenario)
        return f"`{where}` is no key of a scenario; allowed here: {', '.join(owner.model_fields)}"
    if error["type"] == "missing":
        return f"`{where}` is missing; add it"
    rule = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"`{where}`: {rule}" if where else rule
    return f"`{where}`: {rule[0].lower() + rule[1:]}, got {error['input']!r}"


_PARTS: dict[str, type[Settings]] = {
    "stages": Stage,
    "requests": Request,
    "slo": Slo,
    "generator": GeneratorLimits,
    "words": WordHistogram,
    "shape": Shape,
    "step": stages.Step,
    "spike": stages.Spike,
    "recovery": stages.Spike,
    "soak": stages.Soak,
    "breakpoint": stages.Breakpoint,
    "bursts": arrivals.Bursts,
    "day": arrivals.Day,
    "pieces": arrivals.Pieces,
    "replay": arrivals.Replay,
}
