"""Several models under one load: drawn by weight, measured and judged together and each by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scenarios import write_scenario
from tiny_sources import write_recipe
from tritonpress_generator.build import build
from tritonpress_loadtests.cli import main
from tritonpress_server import TritonServer

MODELS = ["recommendation", "recommendation_shop"]


@pytest.fixture(scope="module")
def shop_server(
    tiny_sources: Path, tiny_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A server of two recommendation models, the second in a single step."""
    folder = tmp_path_factory.mktemp("shop")
    sources = Path(shutil.copytree(tiny_sources, folder / "sources"))
    repository = Path(shutil.copytree(tiny_repository, folder / "repository"))
    serve = {"max_batch_size": 8, "max_length": 48, "lengths": "exact", "steps": "single"}
    build(write_recipe(sources, name=MODELS[1], serve=serve), repository)
    with TritonServer(repository) as server:
        yield server


def write_mix(folder: Path, tiny_sources: Path, **changes: Any) -> Path:
    """Returns the path of a scenario that asks the second model three times as often as the first."""
    queries = str(tiny_sources / "queries.jsonl")
    requests = [
        {"workload": "recommendation", "model": MODELS[0], "queries": queries},
        {"workload": "recommendation", "model": MODELS[1], "queries": queries, "weight": 3, "slo": {"p99_ms": 4000}},
    ]
    return write_scenario(folder, requests=requests, **changes)


@pytest.fixture(scope="module")
def mixed(shop_server: TritonServer, tiny_sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a run of the mix has written."""
    folder = tmp_path_factory.mktemp("mixed")
    scenario = write_mix(folder, tiny_sources)
    assert main(["run", str(scenario), "--out", str(folder / "out"), "--url", shop_server.grpc_url]) == 0
    return folder / "out"


@pytest.fixture
def results(mixed: Path) -> dict[str, Any]:
    """The results of the mix, as they were written."""
    loaded: dict[str, Any] = json.loads((mixed / "results.json").read_text(encoding="utf-8"))
    return loaded


def test_requests_are_drawn_by_weight(results: dict[str, Any]) -> None:
    requests = [stage["by_model"][model]["requests"] for stage in results["stages"] for model in MODELS]
    first, second = sum(requests[::2]), sum(requests[1::2])
    # Four standard deviations of a draw.
    assert second / (first + second) == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / (first + second)) ** 0.5)


def test_the_models_make_up_the_whole(results: dict[str, Any]) -> None:
    for stage in results["stages"]:
        assert list(stage["by_model"]) == MODELS
        each = stage["by_model"].values()
        assert stage["failed"] == 0
        assert sum(figures["requests"] for figures in each) == stage["requests"]
        assert sum(figures["throughput_per_s"] for figures in each) == pytest.approx(stage["throughput_per_s"])
        mean = sum(figures["requests"] * figures["latency_ms"]["mean"] for figures in each) / stage["requests"]
        assert mean == pytest.approx(stage["latency_ms"]["mean"])
        assert max(figures["latency_ms"]["max"] for figures in each) == stage["latency_ms"]["max"]
    assert results["slo"]["by_model"] == {MODELS[1]: {"p99_ms": 4000.0, "error_rate": 0.01}}


def test_the_server_counted_the_same_requests_of_each(results: dict[str, Any]) -> None:
    for stage in results["stages"]:
        rows = [row["model"] for row in stage["models"]]
        shop_starts = rows.index(MODELS[1])
        assert rows[0] == MODELS[0]
        assert [name.rsplit("_", 1)[0] for name in rows[shop_starts + 1 :]] == ["recommendation_shop_model"]
        assert all(not name.startswith(MODELS[1]) for name in rows[:shop_starts])
        for row in stage["models"]:
            if row["model"] in MODELS:
                assert row["answered"] == stage["by_model"][row["model"]]["requests"]


def test_report_and_plots_show_each_model(mixed: Path, results: dict[str, Any]) -> None:
    page = (mixed / "report.html").read_text(encoding="utf-8")
    assert "models recommendation, recommendation_shop" in page
    captions = ["Latency by percentile: all requests", *(f"Latency by percentile: {model}" for model in MODELS)]
    assert all(caption in page for caption in captions)
    assert page.count("<svg") == 4
    assert "errors ≤ 1 %; recommendation_shop: p99 ≤ 4000 ms, errors ≤ 1 %" in page
    assert "recommendation_shop with weight 3: 24 queries" in page
    for figures in results["stages"][-1]["by_model"].values():
        assert f"<td>{figures['latency_ms']['p99']:.2f}</td>" in page
    for name in ("throughput_latency.png", "latency.png"):
        assert (mixed / name).stat().st_size > 10_000


def test_one_models_limit_decides(
    tmp_path: Path, tiny_sources: Path, shop_server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text('{"query": "\\u0000\\u0007"}\n')
    queries = {MODELS[0]: str(tiny_sources / "queries.jsonl"), MODELS[1]: "bad.jsonl"}
    requests = [
        {"workload": "recommendation", "model": model, "queries": path, "slo": {"p99_ms": 4000}}
        for model, path in queries.items()
    ]
    stages = [{"users": 1, "duration_s": 0.5}]
    scenario = write_scenario(tmp_path, requests=requests, stages=stages, warm_up_s=0, slo={"error_rate": 1})
    out = tmp_path / "out"
    assert main(["run", str(scenario), "--out", str(out), "--url", shop_server.grpc_url]) == 1
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("limit missed")] == [
        "limit missed: at 1 user, recommendation_shop: 100.00% of requests failed, the limit is 1.00%",
        "limit missed: at 1 user, recommendation_shop: no request was answered",
    ]
    (stage,) = json.loads((out / "results.json").read_text(encoding="utf-8"))["stages"]
    good, bad = (stage["by_model"][model] for model in MODELS)
    assert (good["failed"], good["errors"]) == (0, {})
    assert bad["requests"] == bad["failed"] == stage["failed"] > 0
    assert bad["errors"] == stage["errors"]
    table = [line.split() for line in printed.splitlines()]
    for model, figures in stage["by_model"].items():
        assert [model, str(figures["requests"]), str(figures["failed"])] in [words[:3] for words in table]


def test_every_model_is_checked_before_any_load(
    tmp_path: Path, tiny_sources: Path, tiny_server: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main(["run", str(write_mix(tmp_path, tiny_sources)), *out, "--url", tiny_server.grpc_url]) == 2
    assert "model 'recommendation_shop'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
