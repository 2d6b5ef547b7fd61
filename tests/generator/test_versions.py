"""What was computed by other versions, or on another processor, is not taken for what these would compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from tiny_training import change, write_training
from tritonpress_generator import calibration, compression
from tritonpress_generator import recipe as recipes
from tritonpress_generator.compression import Material
from tritonpress_generator.machine import versions
from tritonpress_generator.progress import Progress
from tritonpress_generator.search import run
from tritonpress_generator.search.settings import Config
from tritonpress_generator.workload import Workload

Upgrade = Callable[[str], None]


@pytest.fixture
def upgrade(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Upgrade:
    """Makes a package look as if it were of another version."""

    def upgrade(package: str) -> None:
        if package == "onnxruntime":
            monkeypatch.setattr(onnxruntime, "__version__", "99.0")
            return
        folder = tmp_path_factory.mktemp("packages")
        (folder / f"{package}-99.0.dist-info").mkdir()
        (folder / f"{package}-99.0.dist-info" / "METADATA").write_text(f"Name: {package}\nVersion: 99.0\n")
        monkeypatch.syspath_prepend(folder)

    return upgrade


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workload, Material]:
    recipe = write_training(tmp_path_factory.mktemp("recipe"), "recommendation")
    workload = Workload.load(recipes.load(recipe), Progress(shown=False))
    return workload, workload.material()


@pytest.mark.parametrize("package", ["tritonpress", "onnxruntime", "nncf"])
def test_calibrations_are_of_the_versions(package: str, upgrade: Upgrade) -> None:
    def key() -> str:
        return calibration.kept_key("qdq", onnx.ModelProto(), "settings", [{"input_ids": np.arange(3)}])

    before = key()
    assert key() == before
    upgrade(package)
    assert versions()[package] == "99.0"
    assert key() != before


@pytest.mark.parametrize("package", ["tritonpress", "onnxruntime", "transformers"])
def test_scores_and_searches_are_of_the_versions(
    loaded: tuple[Workload, Material], package: str, upgrade: Upgrade
) -> None:
    workload, material = loaded
    before = material.held_out_hash(), run._fingerprint(workload, material, Config())
    upgrade(package)
    after = material.held_out_hash(), run._fingerprint(workload, material, Config())
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_scores_and_searches_are_of_the_engines_own_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino", reason="needs the extra openvino")
    recipe = change(write_training(tmp_path, "recommendation"), engine="openvino", graph=[])
    workload = Workload.load(recipes.load(recipe), Progress(shown=False))
    material = workload.material()
    before = material.held_out_hash(), run._fingerprint(workload, material, Config())
    monkeypatch.setattr(openvino, "__version__", "99.0")
    assert material.held_out_hash() != before[0]
    assert run._fingerprint(workload, material, Config()) != before[1]


def test_scores_are_of_the_processor(loaded: tuple[Workload, Material], monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of bytes saturate on one without VNNI."""
    _, material = loaded
    before = material.held_out_hash()
    monkeypatch.setattr(compression, "processor", lambda: "another one")
    assert material.held_out_hash() != before
