"""The shipped recipes on public evaluation sets, where they lie beside the checkout: what they reach, INT8, served."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from at_once import AT_ONCE
from tritonpress_client import Connection
from tritonpress_generator import forms
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import Answers
from tritonpress_generator.build import build_recipe
from tritonpress_generator.evaluate import ask
from tritonpress_generator.progress import Progress
from tritonpress_generator.workload import Workload
from tritonpress_server import TritonServer

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("TRITONPRESS_DATA", ROOT.parent / "shared" / "data"))
SETS = {
    "question_answering": (DATA / "qa" / "eval_xquad.json.gz", 68.0),
    "classification": (DATA / "classification" / "sentfin_dev.tsv", 0.84),
}
"""The set, and the least that the FP32 model reaches on it."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the checkout"),
]


@dataclass(frozen=True)
class Answered:
    """One evaluation set, answered by the same model in FP32, in INT8 in process, and in INT8 by the server."""

    metrics: dict[str, dict[str, float]]
    engine: Answers
    served: Answers


@pytest.fixture(scope="module", params=SETS)
def answered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Answered]]:
    task = request.param
    path = ROOT / "generator" / "recipes" / f"{task}.yaml"
    recipe = recipes.load(path)
    out = tmp_path_factory.mktemp(task)
    build_recipe(recipe, out)
    # The model is calibrated as the recipe says, and only then asked the evaluation set.
    shipped = Workload.load(recipe, Progress(shown=False))
    exact = replace(recipe, lengths=recipes.lengths_of("exact", recipe.engine, path=path))
    form = forms.compile_forms(exact, shipped.source())["exact"]
    gate = recipe.gate.model_copy(update={"dataset": str(SETS[task][0])})
    workload = replace(shipped, data=recipe.task.module.load_data(replace(recipe, gate=gate)))
    answers = {"fp32": workload.answers(workload.baseline), "int8": workload.answers(form.infer(recipe.engine))}
    with TritonServer(out, settings=AT_ONCE) as server, Connection(server.grpc_url, timeout_s=60) as connection:
        answers["served"] = ask(connection, recipe.name, workload.data.inputs, batch=7)
    metrics = {name: workload.metrics(given) for name, given in answers.items()}
    print(task, metrics)
    yield task, Answered(metrics, answers["int8"], answers["served"])


def first(metrics: dict[str, Any]) -> float:
    return float(next(iter(metrics.values())))


def test_fp32_reaches_what_it_should(answered: tuple[str, Answered]) -> None:
    task, results = answered
    assert first(results.metrics["fp32"]) >= SETS[task][1]


def test_int8_keeps_99_percent(answered: tuple[str, Answered]) -> None:
    _, results = answered
    assert first(results.metrics["int8"]) >= 0.99 * first(results.metrics["fp32"])


def test_every_served_answer_is_the_one_in_process(answered: tuple[str, Answered]) -> None:
    _, results = answered
    for name, expected in results.engine.items():
        if name == "SCORE":
            assert np.allclose(results.served[name], expected, atol=1e-4)
        else:
            assert results.served[name].tolist() == expected.tolist()
    assert results.metrics["served"] == pytest.approx(results.metrics["int8"], abs=1e-4)
