"""What a capacity plan of `tritonpress-load plan` says about replicas."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tritonpress_generator.errors import InputError

_P99_MS = 100.0
_WATCHED = 0.99
"""The quantile that alerts and dashboard are of, see `queries`."""
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Demand(_Part):
    """What the plan was made for."""

    p99_ms: _Positive
    quantile: float = _WATCHED
    """Of the limit."""
    survive: Literal["nothing", "machine", "zone"] = "machine"


class Service(_Part):
    """The model that binds."""

    model: str


class Replicas(_Part):
    """What an autoscaler is given."""

    min_replicas: int = Field(ge=1, le=20_000)
    max_replicas: int = Field(ge=1, le=20_000)
    target_us: _Positive


class Machine(_Part):
    """The one that was measured."""

    cores: int = Field(gt=0)


class Plan(_Part):
    """A `plan.json`, as far as it matters here."""

    layout: Literal["tritonpress-plan/1"] = Field(alias="schema")
    demand: Demand
    service: Service
    kubernetes: Replicas
    machine: Machine | None = None
    """None where the load came from another one."""


@dataclass(frozen=True)
class Capacity:
    """How many servers there are, and what scales them."""

    min_replicas: int
    max_replicas: int
    target_us: int
    """Mean queue time of a request, of a server's worst model."""
    p99_ms: float
    spread_zones: bool
    """Whether a zone that has no room stops a server from being placed elsewhere."""
    planned: bool
    measured_cores: int | None = None
    """Of the machine that the plan was measured on, where it is known."""


def read(path: Path | None, *, p99_ms: float | None, models: Sequence[str], queue_delay_us: int) -> Capacity:
    """Returns the capacity by the plan at `path`, or a guess where there is none.

    The guess is two to four servers, and a queue of a tenth of the limit; always four where lone requests wait longer
    than that for companions, since then the queue does not tell how many are needed.

    Args:
        path: The `plan.json`.
        p99_ms: The limit that was asked for; None for the plan's.
        models: The repository's.
        queue_delay_us: The longest that one of them waits for companions.

    Raises:
        InputError: It is no plan, or one of another repository, or for a limit on another percentile.
    """
    if path is None:
        limit = p99_ms or _P99_MS
        target_us = round(limit * 100) or 1
        return Capacity(
            min_replicas=2 if queue_delay_us <= target_us else 4, max_replicas=4, target_us=target_us, p99_ms=limit,
            spread_zones=False, planned=False,
        )  # fmt: skip
    plan = _parse(path)
    if plan.service.model not in models:
        raise InputError(
            f"{path}: must be of this repository, is of one with the model {plan.service.model}; measure this one and"
            " plan again"
        )
    if plan.demand.quantile != _WATCHED and p99_ms is None:
        raise InputError(
            f"{path}: must have a limit on p99, of which alerts and dashboard are, has {plan.demand.p99_ms:g} ms on"
            f" p{100 * plan.demand.quantile:g}; give --p99-ms too"
        )
    return Capacity(
        min_replicas=plan.kubernetes.min_replicas,
        max_replicas=max(plan.kubernetes.min_replicas, plan.kubernetes.max_replicas),
        target_us=max(1, round(plan.kubernetes.target_us)),
        p99_ms=p99_ms or plan.demand.p99_ms,
        spread_zones=plan.demand.survive == "zone",
        planned=True,
        measured_cores=plan.machine.cores if plan.machine else None,
    )


def _parse(path: Path) -> Plan:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return Plan.model_validate(content)
    except ValidationError as exc:
        error = exc.errors()[0]
        where = ".".join(map(str, error["loc"])) or "it"
        said = re.sub(r"\s+", " ", error["msg"]).lower()
        raise InputError(f"{path}: `{where}`: {said}; give a plan.json of tritonpress-load plan") from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise InputError(f"{path}: cannot be read ({exc}); give a plan.json of tritonpress-load plan") from exc
