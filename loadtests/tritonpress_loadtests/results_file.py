"""Reads `results.json`, checked as far as plans and comparisons rest on it; `results.py` says what is in it."""

from __future__ import annotations

import binascii
import json
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal

from hdrh.codec import HdrCookieException, HdrHistogramSettingsException, HdrLengthException
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tritonpress_loadtests import histograms
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.results import Results

MOST_BYTES = 256 << 20
"""A stage of an hour has some 5 MB."""
_MOST_CHARACTERS = 400_000
"""Of a histogram all of whose counts are the largest."""
_MOST = 1e9
"""Of a time in ms or s, a rate, a weight: 11 days, in ms. What is computed of these stays a finite float."""
_Amount = Annotated[float, Field(ge=0, le=_MOST)]
_UNDECODABLE = (
    HdrCookieException, HdrHistogramSettingsException, HdrLengthException, zlib.error, binascii.Error,
    ValueError, IndexError, TypeError, OverflowError,
)  # fmt: skip
_SCHEMA = "tritonpress-load/4"
_REMEDY = "give a folder that `tritonpress-load run` wrote"


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class _Windows(_Part):
    width_s: float = Field(gt=0, le=_MOST)
    answered_per_s: list[_Amount]
    p50_ms: list[_Amount | None]
    p99_ms: list[_Amount | None]


class _Stage(_Part):
    label: str
    warm_up_s: _Amount
    windows: _Windows


class _Generator(_Part):
    bottleneck: str
    processes: int = Field(gt=0)


class _ComparedWindows(_Windows):
    failed: list[Annotated[int, Field(ge=0, lt=2**53)]]


class _ComparedStage(_Stage):
    windows: _ComparedWindows
    generator: _Generator


class _Request(_Part):
    model: str
    weight: float = Field(ge=1 / _MOST, le=_MOST)


class _ComparedScenario(_Part):
    name: str
    requests: list[_Request] = Field(min_length=1)
    sha256: str


class ComparedRun(_Part):
    """What a comparison reads."""

    scenario: _ComparedScenario
    stages: list[_ComparedStage] = Field(min_length=1)
    started_at: str
    machine: dict[str, Any]
    repository_sha256: str


class _Latency(_Part):
    mean: _Amount
    p50: _Amount
    p99: _Amount
    p999: _Amount


def _decodes(text: str) -> str:
    try:
        recorded = histograms.counts(histograms.merged([text]))
    except _UNDECODABLE as exc:
        raise ValueError(f"must be an HdrHistogram as `run` writes it ({type(exc).__name__})") from exc
    if not recorded[0].any():
        raise ValueError("must hold a latency")
    return text


class _Figures(_Part):
    latency_ms: _Latency | None
    whole_mean_ms: _Amount | None
    words_up_to: dict[str, Annotated[int, Field(gt=0, lt=2**53)]]
    alone: dict[str, Annotated[str, Field(max_length=_MOST_CHARACTERS), AfterValidator(_decodes)]]

    @model_validator(mode="after")
    def _are_answers(self) -> _Figures:
        if self.latency_ms is not None and not (self.words_up_to and self.whole_mean_ms):
            raise ValueError("words_up_to and whole_mean_ms: must be of the answers")
        if strange := set(self.alone) - set(self.words_up_to):
            raise ValueError(f"alone: {min(strange)!r} is not in words_up_to")
        return self


class _Row(_Part):
    model: str
    batch_sizes: dict[str, Annotated[float, Field(lt=2**53)]]
    execution_ms: dict[str, Annotated[float, Field(le=_MOST)]]
    queue_us: float = Field(ge=0, le=1e3 * _MOST)

    @model_validator(mode="after")
    def _has_a_time_for_each(self) -> _Row:
        for size, count in self.batch_sizes.items():
            if not (size.isascii() and size.isdigit() and int(size) > 0 and count >= 0):
                raise ValueError(f"batch_sizes: must be {{rows: executions}}, got {size!r}: {count!r}")
            if self.execution_ms.get(size, -1.0) < 0:
                raise ValueError(f"execution_ms: must have the time of {size} rows")
        return self


class _Server(_Part):
    cpu_cores: float | None = Field(default=None, ge=0)
    machine_cpu_share: float = Field(ge=0, le=1)


class _PlannedStage(_Stage):
    loop: Literal["open", "closed"]
    users: int | None = Field(gt=0)
    arrivals: str | dict[str, Any] | None
    offered_per_s: _Amount
    throughput_per_s: _Amount
    duration_s: _Amount
    error_rate: float = Field(ge=0, le=1)
    latency_ms: _Latency | None
    by_model: dict[str, _Figures]
    models: list[_Row]
    generator: _Generator
    server: _Server | None = None

    @model_validator(mode="after")
    def _says_how_many_ask(self) -> _PlannedStage:
        if self.loop == "closed" and self.users is None:
            raise ValueError("users: must be a number in a closed loop")
        return self


class _PlannedRequest(_Request):
    words_up_to: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(min_length=1)

    @field_validator("words_up_to")
    @classmethod
    def _is_a_distribution(cls, shares: dict[str, float]) -> dict[str, float]:
        for up_to in shares:
            if not (up_to.isascii() and up_to.isdigit() and len(up_to) < 10 and int(up_to).bit_count() == 1):
                raise ValueError(f"must be {{words: share}} with a power of two, got {up_to!r}")
        if abs(sum(shares.values()) - 1) > 1e-6:
            raise ValueError(f"must add up to 1, got {sum(shares.values()):g}")
        return shares


class _PlannedScenario(_Part):
    name: str
    requests: list[_PlannedRequest] = Field(min_length=1)


class _Served(_Part):
    instances: int = Field(ge=0)
    max_batch_size: int = Field(ge=0)
    batched: bool
    queue_delay_us: int = Field(ge=0)
    config_sha256: str


class _Machine(_Part):
    cpu: str
    cores: int = Field(gt=0)


class PlannedRun(_Part):
    """What a plan reads."""

    scenario: _PlannedScenario
    stages: list[_PlannedStage] = Field(min_length=1)
    served: dict[str, _Served]
    machine: _Machine
    repository_sha256: str

    @model_validator(mode="after")
    def _knows_what_was_asked(self) -> PlannedRun:
        for number, stage in enumerate(self.stages):
            for request in self.scenario.requests:
                if (figures := stage.by_model.get(request.model)) is None:
                    raise ValueError(f"stages.{number}.by_model: must have {request.model}")
                if strange := set(figures.words_up_to) - set(request.words_up_to):
                    where = f"stages.{number}.by_model.{request.model}.words_up_to"
                    raise ValueError(f"{where}: {min(strange)!r} is no class of the scenario")
        return self


def read_results(folder: Path, kind: type[ComparedRun] | type[PlannedRun]) -> Results:
    """Returns the results of a run, as they stand in the file.

    Args:
        folder: What `tritonpress-load run --out` has written.
        kind: What is needed of them.

    Raises:
        ScenarioError: The file cannot be read, is of another version, or is not as `run` writes it.
    """
    path = folder / "results.json"
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ScenarioError(f"{path} must be at most {MOST_BYTES >> 20} MiB, is {size >> 20}; {_REMEDY}")
        run: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        cause = exc.strerror if isinstance(exc, OSError) else exc
        raise ScenarioError(f"cannot read {path}: {cause}; {_REMEDY}") from exc
    if not isinstance(run, dict) or run.get("schema") != _SCHEMA:
        raise ScenarioError(f"{path} is of another version; run its scenario again with this one")
    try:
        kind.model_validate(run)
    except ValidationError as exc:
        error = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in error["loc"])
        rule = error["msg"].removeprefix("Value error, ")
        raise ScenarioError(
            f"{path}: {where}{': ' if where else ''}{rule[0].lower()}{rule[1:]}; {_REMEDY}, unchanged"
        ) from exc
    return run
