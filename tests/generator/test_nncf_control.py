"""NNCF with accuracy control: no more FP32 than the metric needs; what cannot be quantised is refused in a line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nncf_graphs import FP32, SAMPLES, Metric, in_fp32, quantized, worst
from tiny_encoders import make, pairs, signature
from tiny_sources import write_task
from tiny_training import LEARNT, change, of_written, run, write_training
from tritonpress_generator import accuracy_control, cli, export, repository
from tritonpress_generator.engines import onnxruntime, onnxruntime_gpu, tensorrt
from tritonpress_generator.errors import GateError, InputError
from tritonpress_generator.graph import GraphMaterial, fuse, nncf
from tritonpress_generator.infer import Array
from tritonpress_generator.kept import Kept
from tritonpress_generator.onnx_graph import (
    GraphEditor,
    normalized,
    with_own_vectors,
)
from tritonpress_generator.quantized_pairs import described, folded, reading_pairs, rebuilt


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    pytest.importorskip("nncf", reason="needs the extra openvino")


@pytest.fixture(scope="module")
def int8() -> onnx.ModelProto:
    return quantized()


def test_accuracy_control_takes_as_little_fp32_as_the_metric_needs(int8: onnx.ModelProto) -> None:
    metric = Metric()
    limit = 1 - 40 * worst(int8)
    notes: list[dict[str, Any]] = []
    graph = quantized(GraphMaterial(score=metric, note=notes.append), max_drop=1 - limit)
    assert metric(graph) >= limit > metric(int8)
    reverted = set(in_fp32(graph)) - set(in_fp32(int8))
    assert 0 < len(reverted) < 12
    before = with_own_vectors(normalized(FP32))
    names = nncf._quantised(GraphEditor(before), nncf.Config())
    whole = nncf._Control(rebuilt(chosen_by_nncf(before, names), before), before, names, GraphMaterial())
    products = reading_pairs(whole._quantized, before, names)
    kept = [name for name in products if name not in reading_pairs(graph, before, names)]
    assert kept
    (note,) = notes
    assert (note["int8"], sorted(note["in_fp32"])) == (len(products) - len(kept), sorted(kept))
    # One of them in INT8 again, and the metric is missed.
    for name in kept:
        assert metric(folded(whole._undone([other for other in kept if other != name]))) < limit


def chosen_by_nncf(before: onnx.ModelProto, names: Sequence[str]) -> dict[str, object]:
    return described(nncf._calibrated(nncf._nncf(), before, names, nncf.Config(), SAMPLES), before)


def test_accuracy_control_finds_the_one_product_that_matters() -> None:
    """A metric that wants one product in FP32, and that not what harms the answers most, gets that one alone."""
    for wanted in ("layer.0/output/dense/MatMul", "layer.1/attention/self/value/MatMul"):

        def metric(graph: onnx.ModelProto, wanted: str = wanted) -> float:
            return float(any(name.endswith(wanted) for name in in_fp32(graph)))

        graph = quantized(GraphMaterial(score=metric), max_drop=0.0)
        names = [name for name in in_fp32(graph) if "self/MatMul" not in name]
        assert [name.endswith(wanted) for name in names] == [True]


def test_accuracy_control_leaves_what_is_good_enough(int8: onnx.ModelProto) -> None:
    metric = Metric()
    assert quantized(GraphMaterial(score=metric), max_drop=1.0).SerializeToString() == int8.SerializeToString()
    assert metric.asked == 2

    def at_the_limit(graph: onnx.ModelProto) -> float:
        return 0.7 if any(node.op_type == "QuantizeLinear" for node in graph.graph.node) else 0.8

    assert quantized(GraphMaterial(score=at_the_limit), max_drop=0.1).SerializeToString() == int8.SerializeToString()


def test_accuracy_control_refuses_where_nothing_may_be_int8() -> None:
    with pytest.raises(GateError, match=r"must be at least 1.0000 \(1.0000 in FP32, max_drop 0\), is 0\.") as raised:
        quantized(GraphMaterial(score=Metric()), max_drop=0.0)
    assert raised.value.exit_status == 1
    assert "\n" not in str(raised.value)


def test_choice_is_kept_and_measured_again(tmp_path: Path, int8: onnx.ModelProto) -> None:
    kept, metric = Kept(tmp_path), Metric()
    drop = 40 * worst(int8)
    first = quantized(GraphMaterial(kept, metric), max_drop=drop)
    assert metric.asked > 3
    kept.save()
    again, metric = Kept(tmp_path), Metric()
    assert quantized(GraphMaterial(again, metric), max_drop=drop).SerializeToString() == first.SerializeToString()
    assert metric.asked == 3
    # Other examples, on which INT8 has another metric: it is chosen anew.
    other = Metric(90)
    assert other(quantized(GraphMaterial(again, other), max_drop=drop)) >= 1 - drop
    assert other.asked > 4


@given(weights=st.lists(st.integers(1, 9), min_size=1, max_size=12), data=st.data())
def test_fewest_is_enough_and_none_of_it_is_too_much(weights: list[int], data: st.DataObject) -> None:
    """Each product gives the metric something; the order of the ranking may be any."""
    gains = {f"product {i}": weight for i, weight in enumerate(weights)}
    ranked = data.draw(st.permutations(sorted(gains)))
    needed = data.draw(st.integers(1, sum(weights) + 1))

    def reaches(names: Sequence[str]) -> bool:
        return sum(gains[name] for name in names) >= needed

    chosen = accuracy_control.fewest(ranked, reaches)
    if chosen is None:
        assert not reaches(ranked[:-1])
    else:
        assert len(chosen) < len(ranked)
        assert reaches(chosen)
        assert not any(reaches([other for other in chosen if other != name]) for name in chosen)


def test_built_with_accuracy_control_and_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_training(tmp_path, "classification", **LEARNT)
    run(recipe)
    change(of_written(recipe, {}), engine="openvino", graph=[{"nncf": {"max_drop": 0.1, "samples": 16}}])
    repository_path = tmp_path / "repository"
    assert cli.main(["build", str(recipe), "--out", str(repository_path)]) == 0
    manifest = repository.read_manifest(repository_path, "classification")
    assert manifest["engine"] == "openvino"
    assert manifest["graph"]["nncf"]["int8"] >= 12
    (model,) = repository_path.rglob("model.xml")
    assert 'element_type="i8"' in model.read_text()
    first = model.with_suffix(".bin").read_bytes()
    assert cli.main(["verify", str(repository_path)]) == 0
    assert "are those of the build" in capsys.readouterr().out
    assert cli.main(["build", str(recipe), "--out", str(repository_path)]) == 0
    assert {path.read_bytes() for path in repository_path.rglob("model.bin")} == {first}


def test_max_drop_without_examples_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = change(write_task(tmp_path, "classification"), engine="openvino", graph=[{"nncf": {"max_drop": 0.01}}])
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "repository")]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.endswith("must have 'data'; add it, with train and validation files")
    assert not list((tmp_path / "repository").rglob("model.xml"))


def test_max_drop_without_a_metric_is_refused() -> None:
    with pytest.raises(InputError, match="needs labelled examples; add 'data' to the recipe"):
        quantized(max_drop=0.01)


def test_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(InputError, match=r"needs the package nncf; pip install 'tritonpress\[openvino\]'"):
        quantized()


@pytest.mark.parametrize(
    ("model", "config", "samples", "message"),
    [
        (FP32, {}, [], "needs at least 1 text, got 0"),
        (FP32, {"exclude": ["*"]}, SAMPLES, r"exclude: must leave a product to quantise, all 16 match; leave nncf out"),
        (FP32, {"exclude": ["*layer.9*"]}, SAMPLES, r"'\*layer.9\*' matches none of 16"),
        (fuse.apply(FP32, fuse.Config(), []), {}, SAMPLES, "must have ONNX's operators alone, has some of com.micro"),
        (None, {}, SAMPLES, "must not be quantised yet; name one of nncf and qdq, once"),
    ],
)
def test_what_cannot_be_quantised_is_refused(
    int8: onnx.ModelProto,
    model: onnx.ModelProto | None,
    config: dict[str, object],
    samples: list[dict[str, Array]],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        nncf.apply(model or int8, nncf.Config(**config), samples)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_a_product_of_two_constants_is_refused() -> None:
    model = make("deberta-v2", "own", "span")
    gives = signature(model)
    with pytest.raises(InputError, match=r"NNCF takes no product of two constants, has .*; use qdq for INT8"):
        nncf.apply(export.export(model, gives), nncf.Config(), [pairs([9])])


def test_engines_with_other_kernels_refuse_it(int8: onnx.ModelProto) -> None:
    with pytest.raises(InputError, match=r"activations must be unsigned bytes.*; use quantize for INT8"):
        onnxruntime.rungs(FP32, int8, onnxruntime.Config())
    with pytest.raises(
        InputError, match=r"weights must be in FP32 in front of their pairs.*; use qdq in place of nncf"
    ):
        tensorrt.rungs(FP32, int8, tensorrt.Config())
    with pytest.raises(InputError, match="wants weights in FP32 in front of pairs; use qdq, not nncf"):
        onnxruntime_gpu.rungs(FP32, int8, onnxruntime_gpu.Config(provider="tensorrt"))


QUIET = """
import logging, os, socket, sys

def refused(*_): os._exit(3)

socket.socket.connect = socket.create_connection = refused
from tritonpress_generator.graph import nncf
package = nncf._nncf()
from nncf.telemetry.wrapper import NNCFTelemetry, telemetry
assert not isinstance(telemetry, NNCFTelemetry), telemetry
assert logging.getLoggerClass() is logging.Logger
assert "pytest" not in sys.modules and "NNCF_CI" not in os.environ
import nncf_graphs
nncf_graphs.quantized()
"""


def test_nncf_is_quiet_and_calls_nobody() -> None:
    """In a process of its own, since NNCF sends nothing under pytest."""
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", QUIET], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
