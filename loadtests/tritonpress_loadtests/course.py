"""The stages of a run in their order, some of which depend on what came before."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import Any

from tritonpress_loadtests.arrivals import LONGEST_S
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.scenario import Scenario, Slo
from tritonpress_loadtests.stages import Stage, bounds

Course = Generator[Stage, dict[str, Any], None]
_MOST_DUE = 50_000_000  # 16 B each while a schedule is made: 0.8 GB in each process


def warm_up(scenario: Scenario) -> Stage | None:
    """Returns the heaviest closed stage, or the first open one, for the scenario's warm-up; None if it has none."""
    if not scenario.warm_up_s:
        return None
    stages = scenario.fixed_stages()
    if scenario.shape and scenario.shape.breakpoint:
        first = scenario.shape.breakpoint.next_stage([])
        stages = [first] if first else []
    closed = [stage for stage in stages if not stage.is_open]
    heaviest = max(closed, key=lambda stage: stage.users or 0) if closed else stages[0]
    if heaviest.pieces:  # the first of its rates, not all of them in a few seconds
        return Stage(rate_per_s=heaviest.pieces.rates_per_s[0], duration_s=scenario.warm_up_s)
    return heaviest.model_copy(update={"duration_s": scenario.warm_up_s})


def check_size(scenario: Scenario, scale: float) -> None:
    """Refuses what no generator can hold, before anything is sent.

    Args:
        scenario: What is to be run.
        scale: Multiplies the durations.

    Raises:
        ScenarioError: A stage is too long or too short, or its schedule does not fit into memory.
    """
    stages = [stage for stage in (warm_up(scenario), *scenario.fixed_stages()) if stage is not None]
    if scenario.shape and (search := scenario.shape.breakpoint):
        stages.append(Stage(name="to_per_s", rate_per_s=search.to_per_s, duration_s=search.duration_s))
    for stage in stages:
        if not 0 < scale * stage.duration_s <= LONGEST_S:
            raise ScenarioError(
                f"a stage must take more than 0 and at most {LONGEST_S} s, got {scale * stage.duration_s:g} of"
                f" {stage.label} with `duration_scale` {scale:g}; change it"
            )
        if scale * stage.due > _MOST_DUE:
            raise ScenarioError(
                f"a stage must have at most {_MOST_DUE:,} requests, whose schedule fits into memory, got"
                f" {scale * stage.due:,.0f} of {stage.label} for {scale * stage.duration_s:g} s; divide it into"
                " several stages, or lower the rate"
            )


def course(scenario: Scenario, kept_slo: Callable[[dict[str, Any]], bool]) -> Course:
    """Yields the stages; each is answered with its summary, by which a search for a breakpoint goes on.

    Args:
        scenario: What is run.
        kept_slo: Says of a stage's summary whether it kept the SLO.
    """
    search = scenario.shape.breakpoint if scenario.shape else None
    if search is None:
        for stage in scenario.fixed_stages():
            _ = yield stage
        return
    trials: list[tuple[float, bool]] = []
    while (trial := search.next_stage(trials)) is not None:
        summary = yield trial
        if summary["generator"]["bottleneck"]:
            return  # what it would find is the generator's limit
        trials.append((trial.rate_per_s or 0.0, kept_slo(summary)))


def breakpoint_found(stages: list[dict[str, Any]], kept_slo: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Returns between which rates the breakpoint lies; None where no such rate was tried."""
    sound = [stage for stage in stages if not stage["generator"]["bottleneck"]]
    kept, missed = bounds([(stage["rate_per_s"], kept_slo(stage)) for stage in sound])
    return {"kept_per_s": kept, "missed_per_s": missed}


def recovery_found(stages: list[dict[str, Any]], slo: Slo) -> dict[str, Any]:
    """Returns how many seconds behind the peak began the windows that all kept the limit; None if none did to the end.

    A window is that of requests that were due in it, whose latency holds what the peak had left waiting. Each must keep
    `slo.p99_ms`. How many may fail is no matter of a window, in which one of a few is too large a share: at the end of
    none may more than `slo.error_rate` of all since the recovery have failed.
    """
    pieces = [piece for stage in stages for piece in stage["pieces"]]
    if len(pieces) < 3:
        return {"recovered_after_s": None}  # ended before the peak was over
    peak_ended_s, windows = pieces[2]["from_s"], stages[0]["windows"]
    width_s = windows["width_s"]
    behind = math.ceil(peak_ended_s / width_s - 1e-6)
    for first in range(behind, len(windows["p99_ms"])):
        if _kept_from(first, windows, slo):
            return {"recovered_after_s": max(0.0, first * width_s - peak_ended_s)}
    return {"recovered_after_s": None}


def _kept_from(first: int, windows: dict[str, Any], slo: Slo) -> bool:
    """Says whether the windows from one on kept the limit."""
    # A request that failed is beyond p99 too.
    share = min(slo.error_rate, 1 - 0.99)
    failed = requests = 0.0
    columns = (windows[key][first:] for key in ("p99_ms", "failed", "answered_per_s"))
    for p99_ms, failures, answered_per_s in zip(*columns, strict=True):
        failed += failures
        requests += failures + answered_per_s * windows["width_s"]
        slow = p99_ms is not None and slo.p99_ms is not None and p99_ms > slo.p99_ms
        if slow or failed > share * requests + 1e-9:
            return False
    return True
