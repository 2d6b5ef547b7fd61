"""Several models under one load: drawn by weight, measured and judged together and each by itself."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scenarios import write_scenario
from tritonpress_client import InvalidInputError
from tritonpress_loadtests import histograms
from tritonpress_loadtests.cli import main
from tritonpress_loadtests.run import run
from tritonpress_server import TritonServer

WEIGHTS = {"question_answering": 2, "classification": 2, "recommendation": 1}
MODELS = list(WEIGHTS)


@pytest.fixture(scope="module")
def queries(tiny_sources: Path, task_sources: Path) -> dict[str, str]:
    """The files of queries by workload: one of each format that a build is gated on."""
    return {
        "question_answering": str(task_sources / "question_answering" / "questions.json"),
        "classification": str(task_sources / "classification" / "texts.tsv"),
        "recommendation": str(tiny_sources / "queries.jsonl"),
    }


def write_mix(folder: Path, queries: dict[str, str], **changes: Any) -> Path:
    """Returns the path of a scenario that asks all three models, with a limit for the first."""
    requests: list[dict[str, Any]] = [
        {"workload": model, "model": model, "queries": queries[model], "weight": weight}
        for model, weight in WEIGHTS.items()
    ]
    requests[0]["slo"] = {"p99_ms": 4000}
    return write_scenario(folder, requests=requests, **changes)


@pytest.fixture(scope="module")
def mixed(task_server: TritonServer, queries: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a run of the mix has written."""
    folder = tmp_path_factory.mktemp("mixed")
    out = folder / "out"
    stages = [{"users": 2, "duration_s": 3}, {"users": 6, "duration_s": 2}]
    scenario = write_mix(folder, queries, stages=stages)
    assert main(["run", str(scenario), "--out", str(out), "--url", task_server.grpc_url]) == 0
    return out


@pytest.fixture
def results(mixed: Path) -> dict[str, Any]:
    """The results of the mix, as they were written."""
    loaded: dict[str, Any] = json.loads((mixed / "results.json").read_text(encoding="utf-8"))
    return loaded


def test_requests_are_drawn_by_weight(results: dict[str, Any]) -> None:
    counts = {model: sum(stage["by_model"][model]["requests"] for stage in results["stages"]) for model in MODELS}
    total = sum(counts.values())
    for model, weight in WEIGHTS.items():
        share = weight / sum(WEIGHTS.values())
        # Four standard deviations of the draw.
        assert counts[model] / total == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / total))


def test_the_models_make_up_the_whole(results: dict[str, Any]) -> None:
    for stage in results["stages"]:
        assert list(stage["by_model"]) == MODELS
        each = stage["by_model"].values()
        assert stage["failed"] == 0
        assert sum(figures["requests"] for figures in each) == stage["requests"]
        assert sum(figures["throughput_per_s"] for figures in each) == pytest.approx(stage["throughput_per_s"])
        assert max(figures["latency_ms"]["max"] for figures in each) == stage["latency_ms"]["max"]
        merged = [histograms.merged([figures["histogram"]]) for figures in each]
        assert sum(part.total_count for part in merged) == histograms.merged([stage["histogram"]]).total_count
    assert results["slo"]["by_model"] == {MODELS[0]: {"p99_ms": 4000.0, "p999_ms": None, "error_rate": 0.01}}


def test_the_server_counted_the_same_requests_of_each(results: dict[str, Any]) -> None:
    for stage in results["stages"]:
        rows = [row["model"] for row in stage["models"]]
        starts = [rows.index(model) for model in MODELS]
        for model, start, end in zip(MODELS, starts, [*starts[1:], len(rows)], strict=True):
            assert stage["models"][start]["answered"] == stage["by_model"][model]["requests"]
            assert end - start > 1
            assert all(name.startswith(f"{model}_") for name in rows[start + 1 : end])
        assert [note for note in stage["notes"] if note.startswith("the server ")] == []


def test_report_and_plots_show_each_model(mixed: Path, results: dict[str, Any]) -> None:
    page = (mixed / "report.html").read_text(encoding="utf-8")
    assert "models question_answering, classification, recommendation" in page
    captions = ["Latency by percentile: all requests", *(f"Latency by percentile: {model}" for model in MODELS)]
    assert all(caption in page for caption in captions)
    assert page.count("<svg") == 7
    assert "errors ≤ 1 %; question_answering: p99 ≤ 4000 ms, errors ≤ 1 %" in page
    assert "question_answering with weight 2: 48 queries; classification with weight 2: 24 queries" in page
    for figures in results["stages"][-1]["by_model"].values():
        assert f"<td>{figures['latency_ms']['p99']:.2f}<small>" in page
    for name in ("throughput_latency.png", "latency.png"):
        assert (mixed / name).stat().st_size > 10_000


def test_one_models_limit_decides(
    tmp_path: Path, queries: dict[str, str], task_server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "\\u0000\\u0007"}\n')
    files = {"recommendation": queries["recommendation"], "classification": "bad.jsonl"}
    requests = [
        {"workload": model, "model": model, "queries": path, "slo": {"p99_ms": 4000}} for model, path in files.items()
    ]
    stages = [{"users": 4, "duration_s": 2}]
    scenario = write_scenario(tmp_path, requests=requests, stages=stages, warm_up_s=0, slo={"error_rate": 1})
    out = tmp_path / "out"
    assert main(["run", str(scenario), "--out", str(out), "--url", task_server.grpc_url]) == 1
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("limit missed")] == [
        "limit missed: at 4 users, classification: 100.00% of requests failed, the limit is 1.00%",
        "limit missed: at 4 users, classification: no request was answered",
    ]
    (stage,) = json.loads((out / "results.json").read_text(encoding="utf-8"))["stages"]
    good, bad = (stage["by_model"][model] for model in files)
    assert (good["failed"], good["errors"]) == (0, {})
    assert bad["requests"] == bad["failed"] == stage["failed"] > 0
    assert bad["errors"] == stage["errors"]
    table = [line.split() for line in printed.splitlines()]
    for model, figures in stage["by_model"].items():
        assert [model, str(figures["requests"]), str(figures["failed"])] in [words[:3] for words in table]


def test_every_model_is_checked_before_any_load(
    tmp_path: Path, queries: dict[str, str], tiny_server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["run", str(write_mix(tmp_path, queries)), *out, "--url", tiny_server.grpc_url]) == 2
    assert "model 'question_answering'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workload", MODELS)
def test_a_model_of_another_workload_is_refused_before_any_load(
    workload: str, tmp_path: Path, queries: dict[str, str], task_server: TritonServer
) -> None:
    other = MODELS[MODELS.index(workload) - 1]
    request = {"workload": workload, "model": other, "queries": queries[workload]}
    with pytest.raises(InvalidInputError, match=f"model '{other}' at .* is not for {workload}"):
        run(write_scenario(tmp_path, request=request), task_server.grpc_url, tmp_path / "out")
    assert not (tmp_path / "out").exists()
