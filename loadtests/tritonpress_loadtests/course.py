"""The stages of a run in their order, some of which depend on what came before."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from tritonpress_loadtests.scenario import Scenario
from tritonpress_loadtests.stages import Stage, bounds

Course = Generator[Stage, dict[str, Any], None]


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
    return heaviest.model_copy(update={"duration_s": scenario.warm_up_s})


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


def recovery_found(stages: list[dict[str, Any]], p99_ms: float) -> dict[str, Any]:
    """Returns after how many seconds of the stage behind the peak every window kept the limit; None if none did."""
    after = next((stage for stage in stages if stage["name"] == "after"), None)
    if after is None:
        return {"recovered_after_s": None}
    windows = after["windows"]
    recovered = len(windows["p99_ms"])
    for number in range(len(windows["p99_ms"]) - 1, -1, -1):
        value = windows["p99_ms"][number]
        if windows["failed"][number] or (value is not None and value > p99_ms):
            break
        recovered = number
    whole = recovered < len(windows["p99_ms"])
    return {"recovered_after_s": recovered * windows["width_s"] if whole else None}
