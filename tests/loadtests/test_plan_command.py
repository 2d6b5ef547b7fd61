"""`tritonpress-load plan`: what it prints, writes and refuses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tritonpress_generator.deploy import capacity
from tritonpress_loadtests.cli import main
from tritonpress_loadtests.service_model import fit_service
from tritonpress_loadtests.simulator import Replica
from true_servers import RATES, TRUTH, run_of

WITHOUT_ROOM = """
import resource, sys
from tritonpress_loadtests.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    """A run of a server that is known exactly."""
    return run_of(TRUTH, RATES)


def test_the_command_prints_the_answer_first(
    truth: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(truth))
    prices = tmp_path / "prices.yaml"
    prices.write_text("machine_per_month: 100\ncurrency: USD\nmean_share: 0.25\n")
    arguments = ["plan", str(tmp_path), "--peak-rps", "1000", "--p99-ms", "60"]
    assert main([*arguments, "--prices", str(prices)]) == 0
    out = capsys.readouterr().out.splitlines()
    plan = json.loads((tmp_path / "plan.json").read_text())
    answer = f"{plan['machines']['survives']} machines, one of which may fail"
    assert out[0].startswith(f"{answer}, for 1,000 requests/s")
    page = (tmp_path / "plan.html").read_text()
    assert f"<h1>{answer}</h1>" in page
    assert all(outage["what"] in page for outage in plan["outages"])
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is fetched
    assert plan["cost"]["per_month"] == 100 * plan["machines"]["survives"]
    assert plan["cost"]["per_million"] == pytest.approx(1e6 * plan["cost"]["per_month"] / (250 * 730 * 3600))
    assert plan["kubernetes"]["max_replicas"] == plan["machines"]["survives"]
    assert plan["kubernetes"]["target_us"] > 0
    replicas = capacity.read(tmp_path / "plan.json", p99_ms=None, models=[plan["service"]["model"]], queue_delay_us=0)
    assert (replicas.p99_ms, replicas.max_replicas, replicas.planned) == (60, plan["machines"]["survives"], True)
    prices.write_text("machine_per_month: -1\n")
    assert main([*arguments, "--prices", str(prices)]) == 2
    assert "`machine_per_month`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("policy", "demand", "rate_per_s", "mean_per_s"),
    [
        ("random", ["--peak-rps", "500", "--p999-ms", "70"], 500, 250),
        ("round_robin", ["--peak-rps", "500", "--p99-ms", "60"], 500, 250),
        ("least_loaded", ["--per-day", "8640000", "--peak-factor", "3", "--growth", "2", "--p999-ms", "70"], 600, 200),
    ],
)
def test_demands_of_every_kind(
    truth: dict[str, Any], tmp_path: Path, demand: list[str], rate_per_s: float, mean_per_s: float, policy: str
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(truth))
    (tmp_path / "prices.yaml").write_text("machine_per_month: 73\n")
    arguments = ["--survive", "zone", "--zones", "4", "--balancer", policy, "--prices", str(tmp_path / "prices.yaml")]
    assert main(["plan", str(tmp_path), *demand, *arguments]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    machines = plan["machines"]
    assert plan["demand"]["rate_per_s"] == pytest.approx(rate_per_s)
    more, fewer = (count - math.ceil(count / 4) for count in (machines["survives"], machines["survives"] - 1))
    assert more >= machines["at_limit"] > fewer
    assert machines["at_limit"] * plan["capacity"]["saturation_per_s"] > rate_per_s
    assert machines["p99_ms_after_loss"] <= plan["demand"]["p99_ms"]
    assert machines["headroom"] >= 0
    # 730 hours, 73 each.
    assert plan["cost"]["per_million"] == pytest.approx(1e6 * machines["survives"] * 0.1 / (mean_per_s * 3600))


def test_one_machine_is_one_replica(truth: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(truth))
    assert main(["plan", str(tmp_path), "--peak-rps", "50", "--p99-ms", "60", "--survive", "nothing"]) == 0
    kubernetes = json.loads((tmp_path / "plan.json").read_text())["kubernetes"]
    assert (kubernetes["min_replicas"], kubernetes["max_replicas"]) == (1, 1)


@pytest.mark.parametrize(
    ("replica", "rates", "scales"),
    [
        (Replica(1, 16, 0.002, 0.0005, delay_s=0.002), (50, 500, 1000, 1500), True),
        (Replica(1, 16, 0.002, 0.0002, delay_s=0.004), (50, 600, 1500, 2800), False),
    ],
)
def test_the_autoscaler_adds_no_servers_for_the_sake_of_a_delay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], replica: Replica, rates: tuple[int, ...], scales: bool
) -> None:
    """A lone request waits for the whole of it, however many servers there are."""
    run = run_of(replica, rates)
    (tmp_path / "results.json").write_text(json.dumps(run))
    assert main(["plan", str(tmp_path), "--peak-rps", "10000", "--p99-ms", "20"]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    kubernetes, limit = plan["kubernetes"], plan["capacity"]
    model = fit_service([run])
    for share in (0.01, 0.05, 0.25, 0.5):
        assert 1e6 * model.queue_s(share * limit["rate_per_s"], count=100_000) < kubernetes["target_us"]
    # By what is a tenth above the target Kubernetes adds servers.
    assert (limit["queue_us"] > 1.1 * kubernetes["target_us"]) is scales
    assert (kubernetes["min_replicas"] < kubernetes["max_replicas"]) is scales
    for said in (capsys.readouterr().out, (tmp_path / "plan.html").read_text()):
        assert ("the queue time does not tell how many are needed" in said) is not scales


def test_a_folder_that_cannot_be_written_is_refused_before_the_plan_is_made(
    truth: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(truth))
    # That no machine keeps the limit would be said when the plan is made.
    command = [sys.executable, "-c", WITHOUT_ROOM, "plan", str(tmp_path), "--peak-rps", "50", "--p99-ms", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"tritonpress-load: {tmp_path} must be a folder that can be written: File too large;")
    assert done.stderr.count("\n") == 1


def test_a_plan_that_cannot_be_written_is_printed(
    truth: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps(truth))
    (tmp_path / "plan.html").mkdir()
    assert main(["plan", str(tmp_path), "--peak-rps", "50", "--p99-ms", "60"]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("2 machines, one of which may fail, for 50 requests/s")
    assert said.err.startswith(f"tritonpress-load: cannot write all of the plan into {tmp_path}: Is a directory; ")
    assert said.err.count("\n") == 1
    assert json.loads((tmp_path / "plan.json").read_text())["machines"]["survives"] == 2
