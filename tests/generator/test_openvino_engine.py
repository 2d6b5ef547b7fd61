"""`engine: openvino` is built, gated, served by real Triton in every layout, and answers alike alone and in a batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_encoders import PACKED, asked, feed, make, pairs, signature
from tiny_sources import write_task
from tritonpress_generator import cli, export, repository
from tritonpress_generator.engines import openvino as engine
from tritonpress_generator.errors import InputError
from tritonpress_generator.graph import qdq
from tritonpress_generator.infer import Infer


def recipe_for(folder: Path, task: str = "classification", **serve: object) -> Path:
    path = write_task(folder, task)
    recipe = yaml.safe_load(path.read_text())
    recipe |= {"engine": "openvino", "graph": [{"qdq": {"calibration": "percentile"}}]}
    recipe["serve"] |= serve
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize(
    ("task", "steps", "lengths"),
    [
        pytest.param("classification", "single", "exact", marks=pytest.mark.slow),
        pytest.param("classification", "ensemble", [16, 48], marks=pytest.mark.slow),
        pytest.param("question_answering", "scripting", "exact", marks=pytest.mark.slow),
    ],
)
def test_built_and_verified(
    tmp_path: Path, task: str, steps: str, lengths: object, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_for(tmp_path, task, steps=steps, lengths=lengths)
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 0
    manifest = repository.read_manifest(tmp_path / "out", task)
    assert manifest["engine"] == "openvino"
    assert "openvino" in manifest["versions"]
    (model,) = (tmp_path / "out").rglob("model.xml")
    if steps == "single":
        assert "openvino==" in model.with_name("requirements.txt").read_text()
    else:
        assert repository.read_config(model.parents[1]).backend == "openvino"
    assert cli.main(["verify", str(tmp_path / "out")]) == 0
    assert "are those of the build" in capsys.readouterr().out


SIGNALLED = """
import gc, os, signal, sys
from pathlib import Path
import openvino
from tritonpress_generator.engines import openvino as engine

signal.signal(signal.SIGINT, signal.default_int_handler)  # who started this may ignore it
folder = Path(sys.argv[1])
add = openvino.opset8.parameter([2])
openvino.save_model(openvino.Model([openvino.opset8.add(add, add)], [add], "add"), str(folder / "model.xml"))
first = engine.load(folder, engine.Config(), threads=1)
second = engine.load(folder, engine.Config(), threads=1)
del first, second  # the first one first
gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
    signal.sigtimedwait([], 60)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_is_one_after_engines_are_gone(tmp_path: Path) -> None:
    """OpenVINO leaves a signal stack that is no longer mapped."""
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "interrupted"), done.stderr


@pytest.fixture(scope="module")
def infers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Infer]:
    model = make("bert", export.ATTENTION, "span")
    gives = signature(model)
    fp32 = export.export(model, gives)
    samples = [pairs([1 + i % 50], seed=i) for i in range(16)]
    graphs = {"fp32": fp32, "int8": qdq.apply(fp32, qdq.Config(calibration="percentile"), samples)}
    ready = {}
    for name, graph in graphs.items():
        folder = tmp_path_factory.mktemp(name) / "1"
        engine.build(engine.rungs(fp32, graph, engine.Config()), folder, engine.Config(), asked(gives))
        ready[name] = engine.load(folder, engine.Config(), threads=1)
    return ready | {"torch": export.torch_infer(make("bert", "own", "span"), gives)}


@pytest.mark.parametrize(("name", "bound"), [("fp32", 0.03), ("int8", 0.12)])
def test_answers_are_near_torch(infers: dict[str, Infer], name: str, bound: float) -> None:
    # BF16, which OpenVINO takes where the processor has it, keeps 8 bits.
    sample = pairs([3, 17, 1, 30])
    expected, got = infers["torch"](sample), infers[name](sample)
    for output, answer in expected.items():
        assert np.abs((got[output] - answer) * sample["attention_mask"]).max() <= bound


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_answer_hardly_depends_on_neighbours(infers: dict[str, Infer], name: str) -> None:
    together = pairs([9, 30, 2, 17])
    answers = infers[name](together)
    for row, length in enumerate([9, 30, 2, 17]):
        alone = infers[name]({key: tensor[row : row + 1, :length] for key, tensor in together.items()})
        for output, answer in alone.items():
            assert np.abs(answer[0] - answers[output][row, :length]).max() <= 0.03


def test_config_says_threads_and_precision() -> None:
    gives = signature(make("bert", "own", "mean"))
    config = engine.model_config(engine.Config(instances=2, inference_num_threads=3, precision="bf16"), asked(gives))
    assert config.backend == "openvino"
    assert config.instance_group[0].count == 2
    values = {key: value.string_value for key, value in config.parameters.items()}
    assert values == {"INFERENCE_NUM_THREADS": "3", "NUM_STREAMS": "1", "HINT_BF16": "YES"}


def test_every_family_is_taken(tmp_path: Path) -> None:
    for family in sorted(PACKED):
        model = make(family, export.ATTENTION, "mean")
        gives = signature(model)
        graph = export.export(model, gives)
        rungs = engine.rungs(graph, graph, engine.Config())
        engine.build(rungs, tmp_path / family, engine.Config(), asked(gives))
        sample = feed([5, 12])
        expected = export.torch_infer(make(family, "own", "mean"), gives)(sample)
        got = engine.load(tmp_path / family, engine.Config())(sample)
        assert np.abs(got["embedding"] - expected["embedding"]).max() <= 0.03


def test_packed_sequences_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = recipe_for(tmp_path, lengths="ragged")
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "the engine openvino cannot take 'ragged'; allowed: auto, exact, buckets" in capsys.readouterr().err


def test_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"pip install 'tritonpress\[openvino\]'"):
        engine.versions()
