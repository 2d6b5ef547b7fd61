"""Every section of the bench on a tiny build of every task, with the real Triton."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny_sources import TASKS, items, queries, write_checkpoint, write_jsonl, write_recipe, write_task
from tiny_training import change, write_examples, write_training
from tritonclient.grpc import service_pb2
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import columns
from tritonpress_generator.bench import variants
from tritonpress_generator.bench.__main__ import SECTIONS, main
from tritonpress_generator.bench.messages import load, message
from tritonpress_generator.bench.texts import filled_texts, requests
from tritonpress_generator.build import build
from tritonpress_generator.progress import Progress
from tritonpress_generator.workload import Workload

ROOT = Path(__file__).parents[2]
POSITIONS = 384
"""The longest of the engine's shapes."""


def write(folder: Path, task: str, **changes: object) -> Path:
    """Returns the path of a tiny recipe for `task`, with top-level keys changed."""
    if task in TASKS:
        path = write_task(folder, task, positions=POSITIONS)
    else:
        write_checkpoint(folder / "checkpoint", positions=POSITIONS)
        write_jsonl(folder / "catalogue.jsonl", items())
        write_jsonl(folder / "queries.jsonl", queries())
        path = write_recipe(folder)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return path


def numbers(figures: Any) -> Iterator[float]:
    """Yields every number in `figures`."""
    if isinstance(figures, dict | list):
        for value in figures.values() if isinstance(figures, dict) else figures:
            yield from numbers(value)
    elif isinstance(figures, int | float):
        yield figures


# One task in both precisions and after a pass, since each variant is a build.
@pytest.mark.parametrize(
    ("task", "changes", "layouts"),
    [
        ("recommendation", {"graph": ["fuse"]}, ["ensemble", "scripting", "single"]),
        pytest.param(
            "classification",
            {"graph": ["fuse", "quantize"], "passes": [{"crop": {"layers": [0]}}]},
            ["ensemble", "scripting", "single"],
            marks=pytest.mark.slow,
        ),
        pytest.param("question_answering", {"graph": ["fuse"]}, ["scripting", "single"], marks=pytest.mark.slow),
    ],
)
def test_every_section_measures(
    task: str,
    changes: dict[str, Any],
    layouts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A second for each row of a build's own table, which nobody looks at here.
    monkeypatch.setattr("tritonpress_generator.build.latency_ms", lambda *_: 1.0)
    monkeypatch.setattr("tritonpress_generator.bench.texts.TEXTS", 64)
    loaded: list[str] = []
    monkeypatch.setattr(variants, "load", lambda url, model: loaded.append(model) or load(url, model))
    recipe, graph = write(tmp_path, task, engine={"onnxruntime": {"instances": 1}}, **changes), changes["graph"]
    out = tmp_path / "reports" / "bench" / "figures.json"
    assert main([str(recipe), "--rounds", "1", "--slice-s", "0.002", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert list(figures) == list(SECTIONS)
    assert all(np.isfinite(list(numbers(of_section))).all() for of_section in figures.values())
    for section in ("lengths", "served", "steady"):
        assert list(figures[section]) == ["fp32", "int8"][: len(graph)]
    assert sorted({figure["way"] for figure in figures["served"]["fp32"]}) == layouts
    assert {"exact", "ragged", "buckets"} < set(figures["lengths"]["fp32"])
    measured = [figure["request"] for figure in figures["request"]]
    assert {"1 × 32 tokens", "4 × 48 tokens"} <= set(measured)
    assert ("1 × 20 windows of 48" in measured) == (task == "question_answering")
    # Every variant once, and the one step that no ensemble names; what is loaded twice ends while it is measured.
    called = [name for name in loaded if "_engine_" in name]
    assert len(called) == len(graph)
    assert len(loaded) == len(set(loaded)) == len(called) + len(graph) * len(layouts)
    printed = capsys.readouterr().out
    assert all(size in printed for size in measured)


def test_what_passes_made_is_timed_beside_the_model_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write(
        tmp_path, "classification", passes=[{"crop": {"layers": [0], "positions": 200}}], graph=["fuse", "quantize"]
    )
    out = tmp_path / "figures.json"
    arguments = ["--only", "engine", "--rounds", "1", "--slice-s", "0.002", "--out", str(out)]
    assert main([str(recipe), *arguments]) == 0
    figures = json.loads(out.read_text())["engine"]
    engines = list(dict.fromkeys(figure["engine"] for figure in figures))
    assert engines == ["torch eager FP32", "ONNX Runtime FP32", "served engine without passes", "served engine"]
    assert {tuple(figure["shape"]) for figure in figures} == {(1, 32), (8, 128)}  # the model has no 384 positions left
    printed = capsys.readouterr().out
    assert all(engine in printed for engine in engines)


def test_what_passes_made_is_scored_beside_the_model_without_them(tmp_path: Path) -> None:
    recipe = change(write_training(tmp_path, "recommendation"), passes=[{"crop": {"layers": [0]}}])
    with ExitStack() as stack:
        bench = variants.Bench(recipe, stack, rounds=1, slice_s=0.002)
        score = bench.uncompressed.material().score(bench.workload.infer, bench.workload.tokenizer)
        assert bench.source.score(bench.workload.infer) == score


@pytest.mark.parametrize(
    ("graph", "engine", "fp32", "own"),
    [
        (["fuse"], "onnxruntime", ["fuse"], "fp32"),
        (["fuse", "quantize"], "onnxruntime", ["fuse"], "int8"),
        (["fuse", {"fixed_point": {"bits": 16}}], "onnxruntime", ["fuse"], "int16"),
        ([{"weight_only": {"bits": 4}}], "onnxruntime", [], "int4"),
        ([{"qdq": {"precision": "fp8"}}], "onnxruntime", [], "fp8"),
        (["nncf"], "openvino", [], "int8"),
    ],
)
def test_no_quantised_graph_is_called_fp32(
    graph: list[Any], engine: str, fp32: list[str], own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tritonpress_generator.bench.texts.TEXTS", 8)
    recipe = change(write(tmp_path, "classification"), graph=graph, engine=engine, serve={"lengths": "exact"})
    with ExitStack() as stack:
        bench = variants.Bench(recipe, stack, rounds=1, slice_s=0.002)
        words = {name: [stage.word for stage in stages] for name, stages in bench.graphs.items()}
    assert words == {"fp32": fp32, own: [stage.word for stage in bench.recipe.graph]}
    assert bench.own == own


@pytest.mark.parametrize(
    ("samples", "data", "source"),
    [(None, False, "gate.dataset"), ("samples.txt", False, "serve.samples"), ("samples.txt", True, "data.train")],
)
def test_variants_are_calibrated_on_what_the_build_is_and_asked_other_texts(
    samples: str | None, data: bool, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tritonpress_generator.build.latency_ms", lambda *_: 1.0)
    monkeypatch.setattr("tritonpress_generator.bench.texts.TEXTS", 64)
    recipe = change(write(tmp_path, "classification"), graph=["fuse", "quantize"], serve={"samples": samples})
    change(recipe, data={"train": ["train.tsv"], "validation": ["dev.tsv"]})
    (tmp_path / "samples.txt").write_text("red lamp\n" * 9, encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for seed, name in enumerate(["train", "dev"] if data else []):
        write_examples(elsewhere / f"{name}.tsv", "classification", 12, seed)
    built = build(recipe, tmp_path / "out", data=elsewhere).manifest["calibration"]
    assert (built["source"], built["used_by"]) == (source, "quantize")
    with ExitStack() as stack:
        bench = variants.Bench(recipe, stack, rounds=1, slice_s=0.002, data=elsewhere)
        assert bench.source.calibrated_on == built
        assert bench.built("int8", "single").manifest["calibration"] == built
        assert len(bench.source.samples) == 64


def test_bad_recipe_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "FOLDER/file/figures.json"], "file/figures.json: its folder cannot be made"),
        (["--out", "FOLDER/reports"], "reports: must be a file that can be written, is none; give another"),
        (["--rounds", "0"], "--rounds must be 1 or more, got 0"),
        (["--slice-s", "nan"], "--slice-s must be a number above 0, got nan"),
        (["--slice-s", "inf"], "--slice-s must be a number above 0, got inf"),
        (["--slice-s", "0"], "--slice-s must be a number above 0, got 0"),
        (["--data", "FOLDER/file"], "file: must be the folder of the data files, is none; correct the path"),
    ],
)
def test_what_could_not_be_measured_or_written_is_refused_at_once(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the recipe is read, which is not there."""
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    (tmp_path / "reports").mkdir()
    given = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    assert main([str(tmp_path / "none.yaml"), *given]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("bench: --")
    assert printed.err.count("\n") == 1
    assert said in printed.err


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_bench_measures_every_shipped_recipe_and_keeps_the_figures() -> None:
    planned = subprocess.run(
        ["make", "--dry-run", "bench"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    asked = re.search(r"for recipe in ([^;]*);", planned)
    assert asked is not None
    assert sorted(asked[1].split()) == sorted(path.stem for path in (ROOT / "generator" / "recipes").glob("*.yaml"))
    assert "--out reports/bench/$recipe.json" in planned
    assert "reports/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_texts_fill_one_sequence_or_all_windows_exactly(tmp_path: Path) -> None:
    workload = Workload.load(recipes.load(write(tmp_path, "question_answering")), Progress())
    for tokens, count, windows in ((32, 3, 1), (48, 3, 1), (20 * 48, 1, 20)):
        sequences = workload.encoder.encode(*columns(filled_texts(workload, tokens, count)).values())
        assert sequences.counts == [windows] * count
        assert {len(row) for row in sequences.ids} == {tokens // windows}


def test_message_has_every_public_input_of_every_text() -> None:
    asked = requests({"QUESTION": ["why", "wo", "où"], "CONTEXT": ["a", "b", "c"]}, 2)
    parsed = service_pb2.ModelInferRequest.FromString(message("model", asked[1]))
    assert [(tensor.name, list(tensor.shape)) for tensor in parsed.inputs] == [
        ("QUESTION", [2, 1]),
        ("CONTEXT", [2, 1]),
    ]
    # The last request begins anew with the first texts.
    assert list(parsed.raw_input_contents) == [b"\3\0\0\0o\xc3\xb9\3\0\0\0why", b"\1\0\0\0c\1\0\0\0a"]
