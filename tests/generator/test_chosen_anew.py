"""What is chosen on held-out examples, a threshold or a temperature, is chosen for the model that answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_training import TASKS, change, squad, write_examples
from tritonpress_generator import recipe as recipes
from tritonpress_generator.progress import Progress
from tritonpress_generator.tasks import classification, question_answering
from tritonpress_generator.workload import Workload

PASSES = [
    pytest.param([{"crop": {"layers": 1, "vocabulary": {}}}], {}, id="other ids"),
    pytest.param([{"crop": {"layers": 1}}], {}, id="the same ids"),
    pytest.param([{"crop": {"layers": [1]}}], {"data": None}, id="without examples of the passes"),
]


def compressed(recipe: Path) -> tuple[Workload, Workload]:
    """Returns the workload as it is, and after its recipe's passes."""
    quiet = Progress(shown=False)
    workload = Workload.load(recipes.load(recipe), quiet)
    *_, (_, _, changed) = workload.passed(workload.material(), quiet)
    return workload, changed


@pytest.mark.parametrize(("passes", "changes"), PASSES)
def test_threshold_is_that_of_the_compressed_model(
    passes: list[Any], changes: dict[str, Any], tmp_path: Path, trained: Callable[[str, Path], Path]
) -> None:
    recipe = trained("question_answering", tmp_path)
    questions = squad(24, 5)
    for article in questions["data"]:
        for paragraph in article["paragraphs"][::2]:
            paragraph["qas"][0] |= {"answers": [], "is_impossible": True}
    (tmp_path / "null.json").write_text(json.dumps(questions), encoding="utf-8")
    task = {"question_answering": TASKS["question_answering"]["question_answering"] | {"null_dataset": "null.json"}}
    before, after = compressed(change(recipe, task=task, passes=passes, **changes))
    held_out = after.data.held_out
    asked = question_answering.best_spans(after.recipe, after.infer, after.signature, after.tokenizer, held_out)
    chosen = after.postprocessor.null_threshold
    assert chosen == question_answering.chosen_threshold(held_out, *asked)
    assert chosen != before.postprocessor.null_threshold


@pytest.mark.parametrize("settings", [{"share": 0.5}, {"pattern": "2:4"}])
def test_temperature_is_that_of_the_sparse_model(
    settings: dict[str, Any], tmp_path: Path, trained: Callable[[str, Path], Path]
) -> None:
    recipe = change(trained("classification", tmp_path), passes=[{"sparsify": settings}])
    (tmp_path / "trained" / "tritonpress.json").write_text(json.dumps({"temperature": 3.0}))
    before, after = compressed(recipe)
    held_out = after.material().examples.held_out
    logits = classification.logits_of(after.recipe, after.infer, after.signature, after.tokenizer, held_out)
    chosen = after.postprocessor.temperature
    assert chosen == classification.best_temperature(logits, held_out, after.postprocessor.labels, multi_label=False)
    assert chosen != before.postprocessor.temperature == 3.0


@pytest.mark.parametrize(("passes", "changes"), PASSES)
def test_temperature_is_that_of_the_compressed_model(
    passes: list[Any], changes: dict[str, Any], tmp_path: Path, trained: Callable[[str, Path], Path]
) -> None:
    recipe = trained("classification", tmp_path)
    write_examples(tmp_path / "calibration.tsv", "classification", 24, 5)
    task = {"classification": {"calibration_dataset": "calibration.tsv"}}
    before, after = compressed(change(recipe, task=task, passes=passes, **changes))
    held_out = after.data.held_out
    logits = classification.logits_of(after.recipe, after.infer, after.signature, after.tokenizer, held_out)
    labels = after.postprocessor.labels
    chosen = after.postprocessor.temperature
    assert chosen == classification.best_temperature(logits, held_out, labels, multi_label=False)
    assert chosen != before.postprocessor.temperature
