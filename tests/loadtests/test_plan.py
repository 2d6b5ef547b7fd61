"""The plan: what it makes of runs whose truth is known, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonpress_loadtests import histograms, usl
from tritonpress_loadtests.demand import Demand
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.outages import during_outages
from tritonpress_loadtests.plan import machine_capacity, make_plan
from tritonpress_loadtests.planned_runs import load_runs
from tritonpress_loadtests.service_model import Station, as_measured, fit_service
from tritonpress_loadtests.simulator import Replica
from true_servers import RATES, REST_S, TRUTH, run_of, stage, true_latencies_s


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    """A run of a server that is known exactly."""
    return run_of(TRUTH, RATES)


def test_the_service_is_found_again(truth: dict[str, Any]) -> None:
    (model,) = fit_service([truth]).stations
    assert model.replica.fixed_s == pytest.approx(TRUTH.fixed_s, rel=0.01)
    assert model.replica.per_row_s == pytest.approx(TRUTH.per_row_s, rel=0.01)
    assert model.rest_s == pytest.approx(REST_S, abs=0.0005)
    assert model.batches_seen == 8


def test_capacity_and_latency_are_those_of_the_true_server(truth: dict[str, Any]) -> None:
    demand = Demand(peak_per_s=1000, p99_ms=60)
    model = fit_service([truth])
    capacity = machine_capacity(model, demand)
    assert 1e3 * np.quantile(true_latencies_s(0.97 * capacity, seed=9, count=400_000), 0.99) < 60 * 1.05
    assert 1e3 * np.quantile(true_latencies_s(1.03 * capacity, seed=9, count=400_000), 0.99) > 60 * 0.95


SLOW = Replica(instances=1, max_batch=4, fixed_s=0.010, per_row_s=0.010)


def mixed(rate_per_s: float) -> dict[str, Any]:
    """Returns a stage of two models, of which a fourth of the requests asks the one that is slow."""
    quick, slow = stage(0.75 * rate_per_s), stage(0.25 * rate_per_s, truth=SLOW, model="slow")
    both = histograms.merged([quick["histogram"]] * 3 + [slow["histogram"]])
    p50, p99, p999 = (histograms.quantiles(histograms.counts(both), [0.5, 0.99, 0.999]) / 1e3).tolist()
    means = [each["latency_ms"]["mean"] for each in (quick, slow)]
    # Both stages have as many requests; of the one that is asked less often they took longer to come.
    share = quick["duration_s"] / slow["duration_s"]
    (row,) = slow["models"]
    row["batch_sizes"] = {size: count * share for size, count in row["batch_sizes"].items()}
    return {
        **quick, "offered_per_s": rate_per_s, "throughput_per_s": rate_per_s, "models": [*quick["models"], row],
        "latency_ms": {"mean": 0.75 * means[0] + 0.25 * means[1], "p50": p50, "p99": p99, "p999": p999},
        "histogram": histograms.encoded(both), "by_model": quick["by_model"] | slow["by_model"],
    }  # fmt: skip


def test_two_models_of_a_mix_have_a_queue_each(truth: dict[str, Any]) -> None:
    config = truth["served"]["m_step"]
    run = copy.deepcopy(truth)
    alike = {"words_up_to": {"8": 1.0}}
    run["scenario"]["requests"] = [{"model": "m", "weight": 3, **alike}, {"model": "slow", "weight": 1, **alike}]
    run["served"]["slow_step"] = {**config, "instances": 1, "max_batch_size": 4}
    run["stages"] = [mixed(rate) for rate in (20, 120, 200, 260)]
    model = fit_service([run])
    assert [(station.asked, station.share) for station in model.stations] == [("slow", 0.25), ("m", 0.75)]
    assert model.most_per_s() == pytest.approx(4 / 0.050 / 0.25, rel=0.02)
    for rate in (100, 180, 240):
        parts = [true_latencies_s(0.75 * rate, seed=77, count=300_000)]
        parts.append(true_latencies_s(0.25 * rate, seed=78, count=100_000, truth=SLOW))
        times_s = np.concatenate(parts)
        simulated = model.latencies_s(rate, count=200_000)
        for quantile in (0.5, 0.99):
            assert np.quantile(simulated, quantile) == pytest.approx(np.quantile(times_s, quantile), rel=0.08)
    plan = make_plan([run], Demand(peak_per_s=1000, p99_ms=120))
    assert (plan["service"]["asked"], [other["asked"] for other in plan["service"]["others"]]) == ("slow", ["m"])


def test_a_plan_holds_what_it_promises(truth: dict[str, Any]) -> None:
    demand = Demand(peak_per_s=1500, p99_ms=60, growth=1.2, survive="zone")
    plan = make_plan([truth], demand)
    machines = plan["machines"]
    assert machines["at_limit"] * plan["capacity"]["rate_per_s"] >= 0.9 * 1800
    more, fewer = (count - math.ceil(count / 3) for count in (machines["survives"], machines["survives"] - 1))
    assert more >= machines["at_limit"] > fewer
    assert machines["p99_ms"] <= machines["p99_ms_after_loss"] <= 60
    assert max(abs(check["error"]) for check in plan["checks"]) < 0.1
    assert [entry["machines"] for entry in plan["what_if"]] == sorted(entry["machines"] for entry in plan["what_if"])


def test_a_loss_that_is_planned_for_keeps_the_limit(truth: dict[str, Any]) -> None:
    plan = make_plan([truth], Demand(peak_per_s=1500, p99_ms=60, survive="zone"))
    outages = {outage["what"]: outage for outage in plan["outages"]}
    zone = outages["a zone is lost"]
    assert zone["away"] == math.ceil(plan["machines"]["survives"] / 3)
    assert not zone["overloaded"]
    assert zone["p99_ms"] <= 60
    # What a machine holds at the moment of its loss is lost with it: about its share of what is under way.
    lone = outages["a machine is lost"]
    assert 0 < lone["failed"] < zone["failed"] < 100
    (rolling,) = [outage for what, outage in outages.items() if what.startswith("a rolling update")]
    assert rolling["failed"] == 0
    assert plan["machines"]["p99_ms"] <= rolling["p99_ms"] <= 60


def test_a_loss_that_is_not_planned_for_is_seen(truth: dict[str, Any]) -> None:
    model = fit_service([truth])
    demand = Demand(peak_per_s=1000, p99_ms=60, survive="nothing")
    few = math.ceil(1000 / machine_capacity(model, demand))
    zone = next(outage for outage in during_outages(model, demand, few) if outage["what"] == "a zone is lost")
    assert zone["overloaded"]
    assert zone["p99_ms"] > 60


def test_what_the_runs_do_not_carry_is_refused(truth: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError, match=r"a request alone takes .* the limit is 5 ms: no number of machines"):
        make_plan([truth], Demand(peak_per_s=100, p99_ms=5))
    light = {**truth, "stages": truth["stages"][:2]}
    with pytest.raises(ScenarioError, match=r"no stage was above 120/s; run an open stage at \d+/s"):
        make_plan([light], Demand(peak_per_s=100, p99_ms=60))
    wrong = copy.deepcopy(truth)
    for each in wrong["stages"][1:]:
        each["latency_ms"]["p99"] *= 2
    with pytest.raises(ScenarioError, match="these runs do not carry a plan"):
        make_plan([wrong], Demand(peak_per_s=100, p99_ms=60))
    # One that is measured far beyond the limit, of which the simulation says that it keeps it.
    slow = copy.deepcopy(truth)
    for each in slow["stages"]:
        each["latency_ms"]["p99"] = 121
    with pytest.raises(ScenarioError, match="these runs do not carry a plan"):
        make_plan([slow], Demand(peak_per_s=100, p99_ms=60))
    closed = {**truth, "stages": [{**each, "loop": "closed", "users": 1} for each in truth["stages"]]}
    with pytest.raises(ScenarioError, match="no open stage of poisson arrivals"):
        make_plan([closed], Demand(peak_per_s=100, p99_ms=60))


def test_a_request_that_failed_does_not_lose_its_stage_and_many_are_named(truth: dict[str, Any]) -> None:
    def failing(*shares: float) -> dict[str, Any]:
        found = [stage | {"error_rate": share} for stage, share in zip(truth["stages"], shares, strict=True)]
        return {**truth, "stages": found}

    demand = Demand(peak_per_s=100, p99_ms=60)
    plan = make_plan([failing(1e-5, 2e-4, 1e-3, 5e-4)], demand)
    assert plan["measured_up_to_per_s"] == max(RATES)
    assert len(plan["checks"]) == len(RATES)
    with pytest.raises(
        ScenarioError, match=r"no stage was above 120/s that counts \(.* 0\.2% at 200/s, 3% at 290/s failed"
    ):
        make_plan([failing(0, 0, 0.002, 0.03)], demand)
    message = "hold the simulation to: of the requests .*0.2% at 120/s, .* failed, and the most for this percentile is "
    with pytest.raises(ScenarioError, match=f"{message}0.1%; their `errors`"):
        make_plan([failing(*[0.002] * 4)], demand)
    # Of the requests beyond p99.9 these would be a half.
    with pytest.raises(ScenarioError, match=f"{message.replace('0.2', '0.05')}0.01%"):
        make_plan([failing(*[0.0005] * 4)], replace(demand, quantile=0.999, p99_ms=90))


def test_a_percentile_of_too_few_answers_is_refused(truth: dict[str, Any]) -> None:
    few = histograms.new()
    for value_us in range(5_000, 5_150):
        few.record_value(value_us)
    run = copy.deepcopy(truth)
    for each in run["stages"]:
        each["by_model"]["m"]["alone"] = {}
    run["stages"][0]["by_model"]["m"]["alone"] = {"8": histograms.encoded(few)}
    message = "from the 150 that were alone in flight, of which 1 took longer .* lightest stage 2 times as long"
    with pytest.raises(ScenarioError, match=message):
        make_plan([run], Demand(peak_per_s=100, p99_ms=60))
    with pytest.raises(
        ScenarioError, match="the 150 that were alone in flight, of which 0 took longer than this percentile"
    ):
        make_plan([run], Demand(peak_per_s=100, p99_ms=60, quantile=0.999))


def test_stages_of_a_busy_generator_carry_nothing(truth: dict[str, Any]) -> None:
    demand = Demand(peak_per_s=100, p99_ms=60)
    run = copy.deepcopy(truth)
    run["stages"].append({**copy.deepcopy(run["stages"][0]), "offered_per_s": 100_000})
    run["stages"][-1]["generator"]["bottleneck"] = "it was late"
    assert make_plan([run], demand)["measured_up_to_per_s"] == max(RATES)
    for each in run["stages"]:
        each["generator"]["bottleneck"] = "it was late"
    with pytest.raises(ScenarioError, match="or its generator was the bottleneck"):
        make_plan([run], demand)


@pytest.mark.parametrize(
    "change", [{"queue_delay_us": 5}, {"max_batch_size": 4}, {"batched": False}, {"model": "another_step"}]
)
def test_runs_of_different_repositories_are_not_mixed(
    truth: dict[str, Any], tmp_path: Path, change: dict[str, Any]
) -> None:
    name = change.pop("model", "m_step")
    other = {**truth, "served": {name: {**truth["served"]["m_step"], "config_sha256": "1", **change}}}
    for name, run in (("a", truth), ("b", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(run))
    with pytest.raises(ScenarioError, match="the runs are of 2 different repositories"):
        load_runs([tmp_path / "a", tmp_path / "b"])


def test_runs_may_differ_in_instances_and_the_first_s_are_planned_with(truth: dict[str, Any], tmp_path: Path) -> None:
    served = {"m_step": {**truth["served"]["m_step"], "instances": 1, "config_sha256": "1"}}
    alone = replace(TRUTH, instances=1)
    one = {**truth, "served": served, "stages": [stage(rate, truth=alone) for rate in (15, 80, 120)]}
    for name, run in (("two", truth), ("one", one)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(run))
    for first, second, instances in (("two", "one", 2), ("one", "two", 1)):
        runs = load_runs([tmp_path / first, tmp_path / second])
        assert fit_service(runs).binding.replica.instances == instances


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"cannot read .*results\.json"):
        load_runs([tmp_path / "c"])


def test_knee_and_saturation_are_those_of_the_true_server(truth: dict[str, Any]) -> None:
    capacity = make_plan([truth], Demand(peak_per_s=100, p99_ms=60))["capacity"]
    assert capacity["saturation_per_s"] == pytest.approx(2 * 8 / 0.038, rel=0.01)
    rates = np.linspace(0.1, 0.95, 40) * capacity["saturation_per_s"]
    powers = [rate / true_latencies_s(rate, seed=3).mean() for rate in rates]
    assert capacity["knee_per_s"] == pytest.approx(rates[int(np.argmax(powers))], rel=0.1)
    # It is the machine's, whatever is asked of it.
    assert make_plan([truth], Demand(peak_per_s=100, p99_ms=42))["capacity"]["knee_per_s"] == capacity["knee_per_s"]
    assert capacity["knee_per_s"] < capacity["rate_per_s"] < capacity["saturation_per_s"]


def test_what_changes_is_compared_with_what_was_measured(truth: dict[str, Any]) -> None:
    """Where measurements bound a machine's rate, a change that gains nothing leaves as many machines."""
    light = {**truth, "stages": [stage(rate) for rate in (20, 120, 200)]}
    plan = make_plan([light], Demand(peak_per_s=5_000, p99_ms=42))
    assert plan["machines"]["at_limit"] == pytest.approx(5_000 / 220, rel=0.05)
    what_if = {entry["change"]: entry["machines"] for entry in plan["what_if"]}
    assert what_if["the batcher waits 2 ms longer"] == pytest.approx(plan["machines"]["at_limit"], rel=0.05)
    faster = next(machines for change, machines in what_if.items() if change.startswith("an execution takes 20 % less"))
    assert faster == pytest.approx(0.8 * plan["machines"]["at_limit"], rel=0.07)


def test_a_limit_that_a_change_misses_leaves_the_change_out(truth: dict[str, Any]) -> None:
    model = fit_service([truth])
    alone_ms = 1e3 * np.quantile(model.latencies_s(0.1, count=20_000), 0.99)
    plan = make_plan([truth], Demand(peak_per_s=100, p99_ms=alone_ms + 1))
    assert not [entry for entry in plan["what_if"] if entry["change"] == "the batcher waits 2 ms longer"]


def test_the_universal_scalability_law_is_found_again() -> None:
    users = np.array([1.0, 2, 4, 8, 16, 32])
    law = usl.Fit(100.0, 0.05, 0.002)
    assert usl.fit(users, law.throughput(users)).__dict__ == pytest.approx(law.__dict__)
    stages = [
        {
            "loop": "closed",
            "users": int(count),
            "throughput_per_s": rate,
            "windows": {"answered_per_s": (rate * np.random.default_rng(0).normal(1, 0.02, 20)).tolist()},
        }
        for count, rate in zip(users, law.throughput(users), strict=True)
    ]
    found = usl.fit_stages(stages)
    assert found is not None
    for name in ("rate_per_s", "contention", "coherency"):
        low, high = found["interval"][name]
        assert low - 1e-9 <= found[name] <= high * 1.05
    assert found["peak_users"] == pytest.approx(law.peak_users, rel=0.01)
    assert usl.fit_stages(stages[:3]) is None
    # Falling throughput cannot be less than no contention.
    assert usl.fit(users, 100 * users).contention == pytest.approx(0)


def test_instances_that_share_the_cores_do_not_add_up(truth: dict[str, Any]) -> None:
    """Two cores; a request takes 10 ms of one in its execution and, with `busy`, as much again elsewhere."""
    alone = Replica(instances=1, max_batch=1, fixed_s=0.01, per_row_s=0.0)
    config = {**truth["served"]["m_step"], "instances": 1, "batched": False}
    stages = [stage(rate, truth=alone) for rate in (20, 50, 70)]
    for each in stages:
        each["models"][0] |= {"batch_sizes": {"1": each["offered_per_s"] * each["duration_s"]}}
        each["models"][0] |= {"execution_ms": {"1": 10.0}}
        each["server"] = {"cpu_cores": 0.02 * each["offered_per_s"], "machine_cpu_share": 0.01 * each["offered_per_s"]}
    run = {**truth, "stages": stages, "served": {"m_step": config}}
    demand = Demand(peak_per_s=50, p99_ms=100)
    model = fit_service([run])
    assert (model.binding.cores, model.binding.elsewhere_s) == (2, pytest.approx(0.01))

    def two(station: Station) -> Replica:
        return replace(station.replica, instances=2)

    one = machine_capacity(model, demand, as_measured)
    assert one < machine_capacity(model, demand, two) < 100  # 20 ms of two cores a request
    plan = make_plan([run], demand)
    what_if = {entry["change"]: entry["rate_per_s"] for entry in plan["what_if"]}
    assert what_if["one instance more, on the same cores"] < 100
    assert what_if["one instance more, on a core of its own"] > 2 * one
    assert plan["service"]["elsewhere_core_ms"] == pytest.approx(10)
    # Of a server on another machine it is not known what its cores do.
    for each in stages:
        each["server"] = {"cpu_cores": None, "machine_cpu_share": 0.5}
    assert machine_capacity(fit_service([run]), demand, two) > 2 * one
