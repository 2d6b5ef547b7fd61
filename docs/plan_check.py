"""How well a capacity plan foretells what was not given to it: the highest rate within the limit, and p99 below it.

    python docs/plan_check.py model_repo                            # all configurations, some 45 minutes
    python docs/plan_check.py model_repo --only classification --seconds 10

The breakpoint of each configuration is searched first. Then stages for the plan (10, 30, 60, 80 and 95 % of it) and
stages that the plan never sees (50, 70 and 85 %) are measured in turn, and the breakpoint once more, because machines
drift. Prints each prediction beside its measurement. A stage is a sample: where a few texts are many times longer than
the rest, how many of them it has, and how near to each other, is chance. So each prediction is also made for the very
requests that were sent, at the moments when they were: what differs there is the model, or the machine. `--out` keeps
the runs; those that it has already are not measured again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonpress_loadtests.demand import Demand
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.generator_protocol import Order
from tritonpress_loadtests.open_loop import stage_schedule
from tritonpress_loadtests.plan import machine_capacity
from tritonpress_loadtests.results import Results
from tritonpress_loadtests.results_file import PlannedRun, read_results
from tritonpress_loadtests.run import run
from tritonpress_loadtests.scenario import load_scenario
from tritonpress_loadtests.service_model import Change, ServiceModel, Station, fit_service
from tritonpress_loadtests.simulator import Replica, simulate
from tritonpress_loadtests.stages import bounds
from tritonpress_server import TritonServer

RECIPES = Path(__file__).parents[1] / "generator" / "recipes"
QUERIES = {
    "classification": RECIPES / "classification" / "financial_news.tsv",
    "recommendation": RECIPES / "recommendation" / "queries.jsonl",
    "question_answering": RECIPES / "question_answering" / "customer_service.json",
}
PLANNED = (0.1, 0.3, 0.6, 0.8, 0.95)
HELD_OUT = {0.5: 0.20, 0.7: 0.20, 0.85: 0.35}
"""Shares of the breakpoint, and by how much p99 may be missed there."""
RATE_ERROR = 0.10
_DRAWS = 40


@dataclass(frozen=True)
class Configuration:
    """What is served: workloads by weight, and what is changed in the config of their steps."""

    name: str
    weights: dict[str, int]
    p99_ms: float
    instances: int | None = None
    planned_instances: int | None = None
    """Of the server whose runs the plan is made of, where it is another number."""
    queue_delay_us: int | None = None
    longer: float = 1.0
    """How many times longer its stages are, where few requests a second must carry a p99."""


CONFIGURATIONS = (
    Configuration("classification", {"classification": 1}, 50, instances=1),
    Configuration("classification, 2 instances from runs of 1", {"classification": 1}, 50, 2, planned_instances=1),
    Configuration("classification, queue delay 3 ms", {"classification": 1}, 50, instances=1, queue_delay_us=3000),
    Configuration("recommendation", {"recommendation": 1}, 50, instances=1),
    Configuration("question answering", {"question_answering": 1}, 1000, instances=1, longer=4),
    Configuration("classification 3, recommendation 1", {"classification": 3, "recommendation": 1}, 50, instances=1),
)


def main() -> int:
    """Measures, prints, and returns 1 where a prediction missed by more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, help="with the three demonstration workloads")
    parser.add_argument("--only", default="", metavar="TEXT", help="configurations whose name has it")
    parser.add_argument("--seconds", type=float, default=25, help="of each stage (%(default)s)")
    parser.add_argument("--out", type=Path, help="keeps each run's folder there, and goes on with those it has")
    arguments = parser.parse_args()
    missed = 0
    print("| configuration | what | measured | foretold | foretold of what was sent | may be |")
    print("| --- | --- | --- | --- | --- | --- |")
    for configuration in CONFIGURATIONS:
        if arguments.only in configuration.name:
            with tempfile.TemporaryDirectory() as name:
                folder = (arguments.out or Path(name)) / configuration.name.replace(" ", "_").replace(",", "")
                seconds = arguments.seconds * configuration.longer
                try:
                    missed += _check(configuration, arguments.repository, folder, seconds)
                except ScenarioError as exc:
                    missed += 1
                    print(exc, file=sys.stderr)
    return int(missed > 0)


def _check(configuration: Configuration, repository: Path, folder: Path, seconds: float) -> int:
    """Prints a configuration's rows; returns how many predictions missed."""
    served = _copy(repository, folder / "served", configuration, configuration.instances)
    with TritonServer(served, models=list(configuration.weights)) as server:
        first = _breakpoint(configuration, server.grpc_url, folder / "breakpoint_1", seconds, guess=None)
        searched = _rate(first)
        if configuration.planned_instances is None:
            # A held-out stage lies between two for the plan, so that a drift is in both.
            shares = [share for pair in zip(PLANNED, [*HELD_OUT, None, None], strict=True) for share in pair if share]
        else:
            with_other = _copy(repository, folder / "planned", configuration, configuration.planned_instances)
            shares = list(HELD_OUT)
        measured = _stages(configuration, server.grpc_url, folder / "stages", seconds, searched, tuple(shares))
        second = _breakpoint(configuration, server.grpc_url, folder / "breakpoint_2", seconds, guess=searched)
    planned = _of(measured, shares, PLANNED)
    if configuration.planned_instances is not None:
        with TritonServer(with_other, models=list(configuration.weights)) as server:
            other = _breakpoint(
                configuration, server.grpc_url, folder / "breakpoint_planned", seconds, guess=searched / 2
            )
            planned = _stages(configuration, server.grpc_url, folder / "planned_runs", seconds, _rate(other), PLANNED)
    model = fit_service([planned])

    def change(station: Station) -> Replica:
        return replace(station.replica, instances=configuration.instances)

    rates = [_rate(found) for found in (first, second)]
    between = f" ({' and '.join(f'{rate:.0f}' for rate in rates)})"
    capacity = machine_capacity(model, Demand(peak_per_s=1, p99_ms=configuration.p99_ms), change)
    drawn = [_foretold_search(model, change, found, configuration.p99_ms) for found in (first, second)]
    what = f"requests/s at p99 ≤ {configuration.p99_ms:g} ms"
    rows = [(what, capacity, geometric_mean(drawn), geometric_mean(rates), between, RATE_ERROR)]
    for number, (share, stage) in enumerate(zip(shares, measured["stages"], strict=True)):
        if share not in HELD_OUT:
            continue
        rate = stage["offered_per_s"]
        times_s = model.latencies_s(rate, count=200_000, change=change)
        simulated = 1e3 * float(np.quantile(times_s, 0.99, method="higher"))
        of_drawn = _foretold_p99_ms(model, change, measured, number, stage["warm_up_s"])
        low, high = stage["interval_ms"]["p99"]
        p99_ms, interval = stage["latency_ms"]["p99"], f" [{low:.1f}–{high:.1f}]"
        rows.append((f"p99 in ms at {share:.0%}, {rate:.0f}/s", simulated, of_drawn, p99_ms, interval, HELD_OUT[share]))
    return sum(_print(configuration, row) for row in rows)


def _of(results: Results, shares: Sequence[float], wanted: Collection[float]) -> Results:
    """Returns the results with the stages of the wanted shares alone."""
    stages = [stage for stage, share in zip(results["stages"], shares, strict=True) if share in wanted]
    return {**results, "stages": stages}


def _print(configuration: Configuration, row: tuple[str, float, float, float, str, float]) -> bool:
    """Prints a row; returns whether what a plan foretells missed by more than it may."""
    what, predicted, of_drawn, measured, more, may_be = row
    columns = (
        configuration.name,
        what,
        f"{measured:.1f}{more}",
        f"{predicted:.1f} ({predicted / measured - 1:+.0%})",
        f"{of_drawn:.1f} ({of_drawn / measured - 1:+.0%})",
        f"± {may_be:.0%}",
    )
    print("| " + " | ".join(columns) + " |", flush=True)
    return abs(predicted / measured - 1) > may_be


def _foretold_p99_ms(
    model: ServiceModel, change: Change, results: Results, number: int, warm_up_s: float = 0.0, stage: Any = None
) -> float:
    """Returns the simulated p99 of the very requests of a stage of a run, the mean over draws of their own times."""
    loaded = load_scenario(Path(results["scenario"]["path"]))
    stage = stage or loaded.scenario.fixed_stages()[number]
    order = Order(stage, number, 0, 1)
    due_s = np.asarray(stage_schedule(loaded, order), np.float64)
    drawn = list(islice(loaded.draws(f"open {number} 0"), len(due_s)))
    places, classes = np.array([each.place for each in drawn]), np.array([each.up_to for each in drawn])
    found = []
    for seed in range(_DRAWS):
        times_s = np.empty(len(due_s))
        for station in model.stations:
            own = places == loaded.models.index(station.asked)
            factors = station.own.draw_of(classes[own], seed) / station.own.mean_s
            replica = station.crowded(change(station), len(due_s) / stage.duration_s)
            times_s[own] = simulate(due_s[own], factors, replica, seed=seed) + station.rest_s
        found.append(1e3 * float(np.quantile(times_s[due_s >= warm_up_s], 0.99, method="higher")))
    return float(np.mean(found))


def _foretold_search(model: ServiceModel, change: Change, results: Results, p99_ms: float) -> float:
    """Returns the rate that the same search finds, with the requests that it would have sent, by simulation."""
    search = load_scenario(Path(results["scenario"]["path"])).scenario.shape.breakpoint
    trials: list[tuple[float, bool]] = []
    while (stage := search.next_stage(trials)) is not None:
        p99 = _foretold_p99_ms(model, change, results, len(trials), stage=stage)
        trials.append((stage.rate_per_s, p99 <= p99_ms))
    kept, missed = bounds(trials)
    return float((kept * missed) ** 0.5)


def _stages(
    configuration: Configuration,
    url: str,
    out: Path,
    seconds: float,
    breakpoint_per_s: float,
    shares: tuple[float, ...],
) -> Results:
    """Runs Poisson arrivals at shares of the breakpoint; the lightest for longer, as it has few requests."""
    stages = [
        {"rate_per_s": share * breakpoint_per_s, "duration_s": seconds * (2 if share < 0.3 else 1)} for share in shares
    ]
    return _run(configuration, url, out, {"stages": stages})


def _breakpoint(configuration: Configuration, url: str, out: Path, seconds: float, *, guess: float | None) -> Results:
    """Returns the run of a search for the highest rate that keeps the limit."""
    search = {"from_per_s": 0.75 * guess if guess else 20, "to_per_s": 5000, "duration_s": seconds * 0.6}
    results = _run(configuration, url, out, {"shape": {"breakpoint": search}})
    found = results["breakpoint"]
    if not found["kept_per_s"] or not found["missed_per_s"]:
        raise ScenarioError(f"{configuration.name}: no breakpoint was found ({found}); run it on a quiet machine")
    return results


def _rate(results: Results) -> float:
    """Returns the rate in the middle between the highest that kept the limit and the lowest that missed it."""
    found = results["breakpoint"]
    return float((found["kept_per_s"] * found["missed_per_s"]) ** 0.5)


def _run(configuration: Configuration, url: str, out: Path, course: dict[str, Any]) -> Results:
    if (out / "results.json").exists():
        return read_results(out, PlannedRun)
    out.mkdir(parents=True, exist_ok=True)
    scenario = out / "scenario.yaml"
    requests = [
        {"workload": name, "model": name, "queries": str(QUERIES[name]), "weight": weight}
        for name, weight in configuration.weights.items()
    ]
    slo = {"p99_ms": configuration.p99_ms, "error_rate": 0.001}
    settings = {"name": "plan_check", "requests": requests, "warm_up_s": 3, "timeout_s": 10, "slo": slo, **course}
    # It shares the cores, on purpose: what it takes of them is there in every stage, and in the plan.
    settings["generator"] = {"lag_share": 0.4}
    scenario.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return run(scenario, url, out, progress=_say)


def _say(event: dict[str, Any]) -> None:
    if event["event"] == "stage" and event["latency_ms"]:
        busy = event["generator"]["bottleneck"]
        print(
            f"{event['label']}: p99 {event['latency_ms']['p99']:.1f} ms, {event['throughput_per_s']:.0f}/s"
            f"{'; the generator was the bottleneck: ' + busy if busy else ''}",
            file=sys.stderr,
        )


def _copy(repository: Path, target: Path, configuration: Configuration, instances: int | None) -> Path:
    """Returns a copy of the repository, the configuration's numbers in its steps' configs."""
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(repository, target)
    for path in target.glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        if config.platform == "ensemble":
            continue
        if instances is not None:
            config.instance_group[0].count = instances
        if configuration.queue_delay_us is not None:
            config.dynamic_batching.max_queue_delay_microseconds = configuration.queue_delay_us
        path.write_text(text_format.MessageToString(config), encoding="utf-8")
    return target


if __name__ == "__main__":
    sys.exit(main())
