"""What a deployment watches and scales by: whose p99, which percentile of a plan, which queue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployments import deploy, free_ports, refused, use_index, write_repository


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages on the disk."""
    use_index(tmp_path / "index", monkeypatch)


def test_a_workload_of_which_triton_gives_no_p99_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = write_repository(tmp_path / "model_repo")
    deploy(repository, tmp_path / "before")
    assert "response cache" not in capsys.readouterr().out
    write_repository(repository, "answers", cached=True)
    deploy(repository, tmp_path / "out")
    said = "note: of a workload with a response cache Triton gives no p99 (answers): TritonLatency never rings for it;"
    assert said in capsys.readouterr().out


def test_a_limit_on_another_percentile_than_is_watched_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = write_repository(tmp_path / "model_repo")
    (step,) = repository.glob("classification_model_*")
    plan = {
        "schema": "tritonpress-plan/1",
        "demand": {"p99_ms": 200, "quantile": 0.999},
        "service": {"model": step.name},
        "kubernetes": {"min_replicas": 2, "max_replicas": 4, "target_us": 900},
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    option = f"--plan={tmp_path / 'plan.json'}"
    said = refused(capsys, [repository, "--out", tmp_path / "out", *free_ports(), option])
    assert "must have a limit on p99, of which alerts and dashboard are, has 200 ms on p99.9; give --p99-ms too" in said
    out = deploy(repository, tmp_path / "out", option, "--p99-ms=80")
    rules = yaml.safe_load((out / "compose" / "rules.yaml").read_text())["groups"][0]["rules"]
    assert "tritonpress:p99_us > bool 80000" in [rule["expr"] for rule in rules]
    assert _capacity(out)["target_us"] == 900


@pytest.mark.parametrize(
    ("queue_delay_us", "least", "says"),
    [
        (5_000, 2, "note: 2 to 4 replicas and a queue of 5000 µs are a guess; measure"),
        (5_001, 4, "note: 4 replicas at all times are a guess: with a queue delay of 5001 µs the queue time does not"),
    ],
)
def test_no_server_is_added_since_lone_requests_wait(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], queue_delay_us: int, least: int, says: str
) -> None:
    repository = write_repository(tmp_path / "model_repo", queue_delay_us=queue_delay_us)
    out = deploy(repository, tmp_path / "out", "--p99-ms=50")
    assert says in capsys.readouterr().out
    found = _capacity(out)
    assert (found["min_replicas"], found["max_replicas"], found["target_us"]) == (least, 4, 5_000)


def _capacity(out: Path) -> dict[str, Any]:
    capacity: dict[str, Any] = json.loads((out / "deploy.json").read_text())["capacity"]
    return capacity
