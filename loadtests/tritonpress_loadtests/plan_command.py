"""`tritonpress-load plan`: what is asked, and the plan as a person reads it."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from tritonpress_server import strict_yaml

from tritonpress_loadtests.demand import Demand
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.out_files import check_writable, say, write_whole
from tritonpress_loadtests.plan import make_plan
from tritonpress_loadtests.plan_page import ENDS, LOST, page
from tritonpress_loadtests.planned_runs import load_runs
from tritonpress_loadtests.settings import Settings
from tritonpress_loadtests.simulator import POLICIES

_SECONDS_A_DAY = 86_400
_SECONDS_A_MONTH = 730 * 3_600
# Of what the queue time at the limit is above a batcher's delay, which lone requests wait too: a cluster needs minutes
# to start a machine, so that it must begin before.
_SCALE_AT = 0.5
_OVERLOOKED = 0.1
"""Above the target, by an autoscaler: Kubernetes' `--horizontal-pod-autoscaler-tolerance`."""
_MEAN_SHARE = 0.5


class Price(Settings):
    """A price file: what one machine costs."""

    machine_per_month: float = Field(gt=0)
    """In `currency`, for 730 hours."""
    currency: str = "EUR"
    mean_share: float | None = Field(default=None, gt=0, le=1)
    """The mean rate over the peak, for the cost of a million requests; by default as `--per-day` says, or a half."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    command.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="folders that `tritonpress-load run` wrote")
    demand = command.add_mutually_exclusive_group(required=True)
    demand.add_argument("--peak-rps", type=_positive, metavar="N", help="requests a second at the peak")
    demand.add_argument("--per-day", type=_positive, metavar="N", help="requests a day, with --peak-factor")
    command.add_argument("--peak-factor", type=_positive, default=2.0, metavar="X", help="peak over mean (%(default)s)")
    limit = command.add_mutually_exclusive_group(required=True)
    limit.add_argument("--p99-ms", type=_positive, metavar="M", help="the limit of p99")
    limit.add_argument("--p999-ms", type=_positive, metavar="M", help="the limit of p99.9")
    command.add_argument("--growth", type=_positive, default=1.0, metavar="X", help="multiply the peak (%(default)s)")
    command.add_argument(
        "--survive", choices=("nothing", "machine", "zone"), default="machine", help="what may fail (%(default)s)"
    )
    command.add_argument("--zones", type=int, default=3, metavar="N", help="zones of the cluster (%(default)s)")
    command.add_argument(
        "--balancer", choices=POLICIES, default="two_choices", help="how requests are spread (%(default)s)"
    )
    command.add_argument("--prices", type=Path, metavar="FILE", help="YAML: machine_per_month, currency, mean_share")
    command.add_argument("--json", action="store_true", help="print the plan as JSON")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan and writes it as `plan.json` and `plan.html` into the first folder; returns the exit status.

    Raises:
        ScenarioError: An argument is at fault, or the runs do not carry the plan; or it cannot be written there.
    """
    if arguments.zones < 2:
        raise ScenarioError(f"`--zones` must be 2 or more, got {arguments.zones}")
    peak = arguments.peak_rps or arguments.per_day / _SECONDS_A_DAY * arguments.peak_factor
    demand = Demand(
        peak_per_s=peak,
        p99_ms=arguments.p99_ms or arguments.p999_ms,
        quantile=0.99 if arguments.p99_ms else 0.999,
        growth=arguments.growth,
        survive=arguments.survive,
        zones=arguments.zones,
        policy=arguments.balancer,
    )
    price = _read_price(arguments.prices) if arguments.prices else None
    runs, out_dir = load_runs(arguments.runs), arguments.runs[0]
    remedy = "the plan is written there: give a copy of it, or another run first"
    check_writable(out_dir, remedy=remedy)
    plan = make_plan(runs, demand)
    mean_share = 1 / arguments.peak_factor if arguments.per_day else _MEAN_SHARE
    plan["cost"] = _cost(plan, price, mean_share) if price else None
    plan["kubernetes"] = _kubernetes(plan)
    text = json.dumps(plan, indent=2, ensure_ascii=False)
    try:
        write_whole(out_dir / "plan.json", text + "\n")
        write_whole(out_dir / "plan.html", page(plan))
    except OSError as exc:
        raise ScenarioError(f"cannot write all of the plan into {out_dir}: {exc.strerror}; {remedy}") from exc
    finally:
        say(text if arguments.json else "\n".join(lines(plan)))
    return 0


def lines(plan: dict[str, Any]) -> list[str]:
    """Returns the plan in sentences, the answer first and its reasons behind it."""
    demand, service, machines, capacity = (plan[key] for key in ("demand", "service", "machines", "capacity"))
    percentile = "p99" if demand["quantile"] == 0.99 else "p99.9"
    said = [
        f"{machines['survives']} machines{LOST[demand['survive']]}, for {demand['rate_per_s']:,.0f} requests/s"
        f" with {percentile} ≤ {demand['p99_ms']:g} ms",
        "",
        f"one machine: keeps the limit up to {capacity['rate_per_s']:.0f}/s, has its knee at"
        f" {capacity['knee_per_s']:.0f}/s and is saturated at {capacity['saturation_per_s']:.0f}/s; the instances of"
        f" {service['model']} bind",
        f"  {service['instances']} × up to {service['max_batch']} requests: an execution of n takes"
        f" {service['fixed_ms']:.2f} + {service['per_row_ms']:.2f} n ms, all else {service['rest_ms']:.2f} ms",
        *(
            f"  {other['model']}, for {other['share']:.0%} of them: {other['instances']} × up to {other['max_batch']},"
            f" {other['fixed_ms']:.2f} + {other['per_row_ms']:.2f} n ms, all else {other['rest_ms']:.2f} ms"
            for other in service["others"]
        ),
        f"  largest batch measured: {service['batches_seen']}; rates up to {plan['measured_up_to_per_s']:.0f}/s",
        f"machines at the limit: {machines['at_limit']}, behind a balancer by {demand['policy'].replace('_', ' ')};"
        f" {percentile} {machines['p99_ms_after_loss']:.1f} ms",
        f"machines in all: {machines['survives']}; {percentile} {machines['p99_ms']:.1f} ms while all are there,"
        f" {machines['peak_per_s']:.0f}/s each; the peak may grow by {machines['headroom']:.0%},"
        f" {ENDS[machines['headroom_ends_at']]}",
        "while machines are away, at the peak:",
        *(
            f"  {outage['what']}: {percentile} {outage['p99_ms']:.1f} ms"
            + (f", {outage['failed']} of {outage['requests']} requests must be sent again" if outage["failed"] else "")
            + (": more than the others can serve" if outage["overloaded"] else "")
            for outage in plan["outages"]
        ),
        "simulated against measured:",
        *(
            f"  at {check['rate_per_s']:.0f}/s {check['simulated_ms']:.1f} ms for {check['measured_ms']:.1f} ms"
            f" ({check['error']:+.0%})"
            for check in plan["checks"]
        ),
    ]
    if plan["usl"]:
        low, high = plan["usl"]["interval"]["contention"]
        said.append(f"scaling with users (USL): contention {plan['usl']['contention']:.3f} [{low:.3f}–{high:.3f}]")
    if plan["cost"]:
        cost = plan["cost"]
        said.append(f"cost: {cost['per_month']:,.0f} {cost['currency']} a month, {cost['per_million']:.2f} a million")
    said += ["machines at the limit if"]
    said += [f"  {entry['change']}: {entry['machines']}" for entry in plan["what_if"]]
    kubernetes = plan["kubernetes"]
    said.append(
        f"Kubernetes: {kubernetes['min_replicas']} to {kubernetes['max_replicas']} replicas; scale on"
        f" {kubernetes['metric']} at {kubernetes['target_us']:.0f} µs"
        if kubernetes["scales"]
        else f"Kubernetes: {kubernetes['max_replicas']} replicas at all times, since with a queue delay of"
        f" {capacity['delay_us']} µs the queue time does not tell how many are needed"
    )
    return said


def _kubernetes(plan: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures of a HorizontalPodAutoscaler, a machine a replica.

    With a delay the queue time is longest where load is low, and may be no longer at the limit: then it says nothing of
    how many are needed, and all stay (`scales` is false).
    """
    most, capacity = plan["machines"]["survives"], plan["capacity"]
    target_us = capacity["delay_us"] + _SCALE_AT * max(1.0, capacity["queue_us"] - capacity["delay_us"])
    scales = not capacity["delay_us"] or capacity["queue_us"] > (1 + _OVERLOOKED) * target_us
    return {
        "scales": scales,
        "min_replicas": min(most, max(2, math.ceil(most / 2))) if scales else most,
        "max_replicas": most,
        "metric": "rate(nv_inference_queue_duration_us) / rate(nv_inference_request_success)",
        "target_us": target_us,
    }


def _cost(plan: dict[str, Any], price: Price, mean_share: float) -> dict[str, Any]:
    per_month = plan["machines"]["survives"] * price.machine_per_month
    requests = plan["demand"]["rate_per_s"] * (price.mean_share or mean_share) * _SECONDS_A_MONTH
    return {"per_month": per_month, "per_million": per_month / requests * 1e6, "currency": price.currency}


def _read_price(path: Path) -> Price:
    try:
        return Price.model_validate(strict_yaml.load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, strict_yaml.StrictYamlError) as exc:
        raise ScenarioError(f"cannot read the prices {path}: {exc}") from exc
    except ValidationError as exc:
        error = exc.errors()[0]
        where = ".".join(map(str, error["loc"])) or "it"
        keys = ", ".join(Price.model_fields)
        raise ScenarioError(f"{path}: `{where}`: {error['msg'].lower()}; a price file has {keys}") from exc


def _positive(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text}")
    return value
