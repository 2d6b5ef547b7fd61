"""How well a capacity plan foretells what was not given to it: the highest rate within the limit, and p99 below it.

    python docs/plan_check.py model_repo                            # all configurations, some 45 minutes
    python docs/plan_check.py model_repo --only classification --seconds 10

The breakpoint of each configuration is searched first. Then stages for the plan (10, 30, 60, 80 and 95 % of it) and
stages that the plan never sees (50, 70 and 85 %) are measured in turn, and the breakpoint once more, because machines
drift. Prints each prediction beside its measurement; `--out` keeps the runs.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2
from tritonpress_loadtests.demand import Demand
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.plan import machine_capacity
from tritonpress_loadtests.results import Results
from tritonpress_loadtests.run import run
from tritonpress_loadtests.service_model import ServiceModel, Station, fit_service
from tritonpress_loadtests.simulator import Replica
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
    parser.add_argument("--out", type=Path, help="keeps each run's folder there")
    arguments = parser.parse_args()
    missed = 0
    print("| configuration | what | predicted | measured | error | may be |\n| --- | --- | --- | --- | --- | --- |")
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
        if configuration.planned_instances is None:
            model, measured = _in_turn(configuration, server.grpc_url, folder, seconds, first)
        else:
            with_other = _copy(repository, folder / "planned", configuration, configuration.planned_instances)
            measured = _stages(configuration, server.grpc_url, folder / "stages", seconds, first, tuple(HELD_OUT))
        second = _breakpoint(configuration, server.grpc_url, folder / "breakpoint_2", seconds, guess=first)
    if configuration.planned_instances is not None:
        with TritonServer(with_other, models=list(configuration.weights)) as server:
            other = _breakpoint(configuration, server.grpc_url, folder / "breakpoint_planned", seconds, guess=first / 2)
            planned = _stages(configuration, server.grpc_url, folder / "planned_runs", seconds, other, PLANNED)
        model = fit_service([planned])
    return _print(configuration, model, (first * second) ** 0.5, (first, second), measured["stages"])


def _in_turn(
    configuration: Configuration, url: str, folder: Path, seconds: float, breakpoint_per_s: float
) -> tuple[ServiceModel, Results]:
    """Returns the model fitted to the stages for the plan, and the results of those that it never saw."""
    held_out = list(HELD_OUT)
    # A held-out stage lies between two for the plan, so that a drift is in both.
    shares = [share for pair in zip(PLANNED, [*held_out, None, None], strict=True) for share in pair if share]
    results = _stages(configuration, url, folder / "stages", seconds, breakpoint_per_s, tuple(shares))
    planned, unseen = (
        {
            **results,
            "stages": [stage for stage, share in zip(results["stages"], shares, strict=True) if share in wanted],
        }
        for wanted in (PLANNED, held_out)
    )
    return fit_service([planned]), unseen


def _print(
    configuration: Configuration,
    model: ServiceModel,
    breakpoint_per_s: float,
    searches: tuple[float, float],
    unseen: list[dict[str, Any]],
) -> int:
    def change(station: Station) -> Replica:
        return replace(station.replica, instances=configuration.instances)

    demand = Demand(peak_per_s=1, p99_ms=configuration.p99_ms)
    capacity = machine_capacity(model, demand, change)
    between = " and ".join(f"{rate:.0f}" for rate in searches)
    rows = [
        (f"requests/s at p99 ≤ {configuration.p99_ms:g} ms", capacity, breakpoint_per_s, f" ({between})", RATE_ERROR)
    ]
    for (share, may_be), stage in zip(HELD_OUT.items(), unseen, strict=True):
        rate = stage["offered_per_s"]
        times_s = model.latencies_s(rate, count=200_000, change=change)
        simulated = 1e3 * float(np.quantile(times_s, 0.99, method="higher"))
        low, high = stage["interval_ms"]["p99"]
        rows.append(
            (
                f"p99 in ms at {share:.0%}, {rate:.0f}/s",
                simulated,
                stage["latency_ms"]["p99"],
                f" [{low:.1f}–{high:.1f}]",
                may_be,
            )
        )
    missed = 0
    for what, predicted, measured, more, may_be in rows:
        error = predicted / measured - 1
        missed += abs(error) > may_be
        columns = (
            configuration.name,
            what,
            f"{predicted:.1f}",
            f"{measured:.1f}{more}",
            f"{error:+.0%}",
            f"± {may_be:.0%}",
        )
        print("| " + " | ".join(columns) + " |", flush=True)
    return missed


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


def _breakpoint(configuration: Configuration, url: str, out: Path, seconds: float, *, guess: float | None) -> float:
    """Returns the rate in the middle between the highest that kept the limit and the lowest that missed it."""
    search = {"from_per_s": 0.75 * guess if guess else 20, "to_per_s": 5000, "duration_s": seconds * 0.6}
    found = _run(configuration, url, out, {"shape": {"breakpoint": search}})["breakpoint"]
    if not found["kept_per_s"] or not found["missed_per_s"]:
        raise ScenarioError(f"{configuration.name}: no breakpoint was found ({found}); run it on a quiet machine")
    return float((found["kept_per_s"] * found["missed_per_s"]) ** 0.5)


def _run(configuration: Configuration, url: str, out: Path, course: dict[str, Any]) -> Results:
    out.mkdir(parents=True)
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
