"""NNCF with accuracy control: no more FP32 than the metric needs; what cannot be quantised is refused in a line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from nncf_graphs import FP32, SAMPLES, Metric, in_fp32, quantized, worst
from tiny_encoders import make, pairs, signature
from tiny_sources import write_task
from tiny_training import LEARNT, change, of_written, run, write_training
from tritonpress_generator import cli, export, repository
from tritonpress_generator.errors import GateError, InputError
from tritonpress_generator.graph import GraphMaterial, nncf
from tritonpress_generator.infer import Array
from tritonpress_generator.kept import NOTHING, Kept


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    pytest.importorskip("nncf", reason="needs the extra openvino")


@pytest.fixture(scope="module")
def int8() -> onnx.ModelProto:
    return quantized()


def material(metric: Metric, kept: Kept = NOTHING, **more: Any) -> GraphMaterial:
    return GraphMaterial(kept, metric, held_out=lambda: "these", **more)


def test_worst_products_go_back_to_fp32_until_the_metric_is_kept(int8: onnx.ModelProto, tmp_path: Path) -> None:
    metric = Metric()
    keep = 1 - 40 * worst(int8)
    notes: list[dict[str, Any]] = []
    kept = Kept(tmp_path)
    graph = quantized(material(metric, kept, note=notes.append), keep=keep)
    assert metric(graph) >= keep > metric(int8)
    (note,) = notes
    back = set(in_fp32(graph)) - set(in_fp32(int8))
    assert 0 < len(note["left_out"]) < 12
    assert back == {name for name in note["left_out"] if "MatMul" in name}
    worst_first = sorted(note["errors"], key=note["errors"].__getitem__, reverse=True)
    assert note["left_out"] == worst_first[: len(note["left_out"])]
    # With one fewer in FP32 the metric was missed.
    assert note["metrics"].get(str(len(note["left_out"]) - 1), 0) < keep

    kept.save()
    again = Metric()
    assert quantized(material(again, Kept(tmp_path)), keep=keep).SerializeToString() == graph.SerializeToString()
    assert again.asked == 0


def test_nothing_goes_back_where_int8_is_good_enough(int8: onnx.ModelProto) -> None:
    metric = Metric()
    assert quantized(material(metric), keep=0.01).SerializeToString() == int8.SerializeToString()
    assert metric.asked == 2


def test_status_is_1_where_nothing_may_be_int8() -> None:
    with pytest.raises(
        GateError, match=r"nncf: keep: must leave a part to quantise, 1 of the metric's 1.0000"
    ) as raised:
        quantized(material(Metric()), keep=1.0)
    assert raised.value.exit_status == 1
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_built_with_keep_and_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_training(tmp_path, "classification", **LEARNT)
    run(recipe)
    change(of_written(recipe, {}), engine="openvino", graph=[{"nncf": {"keep": 0.9, "samples": 16}}])
    repository_path = tmp_path / "repository"
    assert cli.main(["build", str(recipe), "--out", str(repository_path)]) == 0
    manifest = repository.read_manifest(repository_path, "classification")
    assert manifest["engine"] == "openvino"
    assert len(manifest["graph"]["nncf"]["errors"]) - len(manifest["graph"]["nncf"]["left_out"]) >= 12
    (model,) = repository_path.rglob("model.xml")
    assert 'element_type="i8"' in model.read_text()
    first = model.with_suffix(".bin").read_bytes()
    assert cli.main(["verify", str(repository_path)]) == 0
    assert "are those of the build" in capsys.readouterr().out
    assert cli.main(["build", str(recipe), "--out", str(repository_path)]) == 0
    assert {path.read_bytes() for path in repository_path.rglob("model.bin")} == {first}


def test_keep_without_examples_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = change(write_task(tmp_path, "classification"), engine="openvino", graph=[{"nncf": {"keep": 0.99}}])
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "repository")]) == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.endswith("must have 'data'; add it, with train and validation files")
    assert not list((tmp_path / "repository").rglob("model.xml"))


def test_keep_without_a_metric_is_refused() -> None:
    with pytest.raises(InputError, match="needs labelled examples; add 'data' to the recipe"):
        quantized(keep=0.99)


def test_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(InputError, match=r"needs the package nncf; pip install 'tritonpress\[openvino\]'"):
        quantized()


@pytest.mark.parametrize(
    ("config", "samples", "message"),
    [
        ({}, [], "needs at least 1 text, got 0"),
        ({"exclude": ["*"]}, SAMPLES, r"exclude: must leave a product to quantise, all 16 match; leave nncf out"),
        ({"exclude": ["*layer.9*"]}, SAMPLES, r"'\*layer.9\*' matches none of 16"),
    ],
)
def test_what_cannot_be_quantised_is_refused(
    config: dict[str, object], samples: list[dict[str, Array]], message: str
) -> None:
    with pytest.raises(InputError, match=message) as raised:
        nncf.apply(FP32, nncf.Config(**config), samples)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_a_product_of_two_constants_is_refused() -> None:
    model = make("deberta-v2", "own", "span")
    gives = signature(model)
    with pytest.raises(InputError, match=r"NNCF takes no product of two constants, has .*; use qdq for INT8"):
        nncf.apply(export.export(model, gives), nncf.Config(), [pairs([9])])


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


@pytest.mark.slow
def test_nncf_is_quiet_and_calls_nobody() -> None:
    """In a process of its own, since NNCF sends nothing under pytest."""
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", QUIET], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
