"""The labels' names: one for each of the model's logits, and none of them twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_sources import write_task
from tiny_training import change
from tritonpress_generator import recipe as recipes
from tritonpress_generator.errors import InputError
from tritonpress_generator.progress import Progress
from tritonpress_generator.workload import Workload


@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        (
            {},
            {"labels": ["negative", "neutral", "neutral"]},
            "labels: must be names that differ, got 'neutral' 2 times",
        ),
        (
            {},
            {"labels": ["negative", "neutral"]},
            r"labels: must be 3 names \(the checkpoint's labels\), got 2; correct",
        ),
        (
            {"id2label": {"0": "negative", "1": "neutral", "2": "neutral"}},
            {},
            "id2label: must be names that differ, got 'neutral' 2 times; give task.classification.labels",
        ),
        ({"id2label": None, "num_labels": 3}, {"labels": ["negative", "neutral"]}, "labels: must be 3 names"),
        (
            {"id2label": {"0": "negative", "1": "neutral"}, "num_labels": 3},
            {},
            "id2label: must be 3 names .* got 2; give",
        ),
        ({"id2label": {"a": "negative", "b": "neutral", "c": "positive"}}, {}, "cannot be loaded"),
    ],
)
def test_names_that_are_not_those_of_the_logits_are_refused(
    tmp_path: Path, config: dict[str, Any], task: dict[str, Any], message: str
) -> None:
    path = change(write_task(tmp_path, "classification"), task={"classification": task})
    file = tmp_path / "checkpoint" / "config.json"
    settings = json.loads(file.read_text()) | {"label2id": None} | config
    file.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
    with pytest.raises(InputError, match=message):
        Workload.load(recipes.load(path), Progress(shown=False))
