"""What a search refuses, or finds nothing of, is said in a line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_search import COARSE, PRUNE, QUICK, SPACE, copied, trained
from tiny_training import change
from tritonpress_generator import cli
from tritonpress_generator.errors import InputError
from tritonpress_generator.search.run import search


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    return trained(folder, passes=[{"prune": PRUNE}], search={**QUICK, "trials": 4, "space": SPACE})


@pytest.mark.slow
def test_nothing_that_passes_is_the_verdict_no(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = copied(
        source,
        "nothing",
        gate={"dataset": "test.jsonl", "metric": "ndcg@10", "keep": 0.5, "agreement": 1.0, "confidence": "point"},
        search={
            **QUICK,
            "trials": 1,
            "space": {"layers": [1], "vocabulary": [False], "precisions": [["fuse", COARSE]]},
        },
    )
    arguments = ["search", str(recipe), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        r"tritonpress search: search: none of \d candidates has passed the gate; .*nothing was written", error
    )
    assert not (tmp_path / "out").exists()
    assert not recipe.with_name("nothing.search").exists()


def test_budget_too_short_for_one_candidate_is_said_in_a_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = copied(source, "short", search={**QUICK, "budget_minutes": 0.001})
    assert cli.main(["search", str(recipe), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"short\.yaml: search\.budget_minutes must be at least [\d.e+]+ for one candidate on this machine, got 0\.001; "
        r"raise it$",
        error,
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change_of", "message"),
    [
        ({"engine": {"tensorrt": {"release": "24.10"}}, "graph": ["qdq"]}, "tensorrt does not run on this machine"),
        ({"data": None}, "must have 'data'; add it"),
        ({"search": {"space": {"layers": [3]}}}, "search.space.layers must be at most 2 (the model's), got 3"),
        ({"search": {"space": {"lengths": ["auto"]}}}, "search.space: lengths must be forms, got auto; leave them out"),
    ],
)
def test_input_at_fault_is_said_in_a_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change_of: dict[str, Any], message: str
) -> None:
    recipe = copied(source, "fault", **change_of)
    if change_of.get("engine"):
        change(recipe, serve={"lengths": "auto", "steps": "ensemble"})
    assert cli.main(["search", str(recipe), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (
            {"keep": 0.99},
            "gate: test.jsonl must have at least 368 examples for a search, since of fewer not even FP32's own answers "
            "are certain at 95% to keep 0.99, has 12; add examples, lower gate.keep, or ask for the point estimate "
            "alone (gate.confidence: point)",
        ),
        ({"keep": 0.5, "agreement": 0.9, "confidence": 0.9}, "must have at least 29 examples"),
    ],
)
def test_gate_that_the_checkpoint_itself_would_not_pass_is_refused_before_the_search(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], gate: dict[str, Any], message: str
) -> None:
    recipe = copied(source, "few", gate={"dataset": "test.jsonl", "metric": "ndcg@10", **gate})
    work = tmp_path / "work"
    assert cli.main(["search", str(recipe), "--out", str(tmp_path / "out"), "--work", str(work)]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not work.exists()


def test_gate_that_is_undecided_says_what_decides_it(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = {"dataset": "test.jsonl", "metric": "ndcg@10", "keep": 0.01, "agreement": 0.73, "confidence": 0.95}
    space = {"layers": [2], "flops": [0.0], "vocabulary": [False], "precisions": [["fuse", COARSE]]}
    recipe = copied(source, "undecided", passes=[], gate=gate, search={**QUICK, "trials": 1, "space": space})
    arguments = ["search", str(recipe), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "agreement with FP32's answers must stay at or above 0.73" in error
    assert "undecided at 95% with 12 examples" in error
    assert error.endswith(
        "nothing was written; add examples, compress less, lower gate.agreement, or ask for the point estimate alone "
        "(gate.confidence: point)"
    )


def test_place_that_cannot_be_written_is_refused_before_the_search(tmp_path: Path) -> None:
    file = tmp_path / "recipe.search"
    file.write_text("mine")
    with pytest.raises(InputError, match=r"recipe\.search: must be a folder that can be written, .* is none; the rec"):
        search(tmp_path / "recipe.yaml", tmp_path / "out")
    with pytest.raises(InputError, match=r"--work .*recipe\.search: must be a folder that can be written"):
        search(tmp_path / "other.yaml", tmp_path / "out", work=file)


def test_metric_that_is_no_number_is_said_in_a_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "broken"
    checkpoint.mkdir()
    for path in (source.parent / "trained").iterdir():
        if path.is_file():
            (checkpoint / path.name).write_bytes(path.read_bytes())
    weights = load_file(checkpoint / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.1.output.dense.weight"))
    weights[name] = torch.full_like(weights[name], 1e38)
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    recipe = copied(source, "broken", checkpoint={"source": str(checkpoint)})
    assert cli.main(["search", str(recipe), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        r"tritonpress search: search: the loss on the training examples must be finite, is not; check", error
    )
