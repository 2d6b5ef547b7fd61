"""The shipped recipes on evaluation sets, the public ones beside the checkout: what they reach, INT8, served."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from at_once import AT_ONCE
from tritonpress_client import Connection
from tritonpress_generator import forms, gate
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import Answers
from tritonpress_generator.asking import ask
from tritonpress_generator.build import build_recipe
from tritonpress_generator.errors import UndecidedError
from tritonpress_generator.progress import Progress
from tritonpress_generator.recipe_text import GateConfig
from tritonpress_generator.scores import Scores
from tritonpress_generator.workload import Workload
from tritonpress_server import TritonServer

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "generator" / "recipes"
DATA = Path(os.environ.get("TRITONPRESS_DATA", ROOT.parent / "shared" / "data"))
XQUAD = DATA / "qa" / "eval_xquad.json.gz"
SHIFTS = tuple(DATA / "qa" / f"dev_shifts_{source}.json.gz" for source in ("amazon_reviews", "reddit"))
HEADLINES = DATA / "classification" / "sentfin_dev.tsv"
SETS: dict[str, tuple[tuple[Path, ...], float]] = {
    "recommendation_compressed": ((RECIPES / "recommendation" / "queries.jsonl",), 0.45),
    "recommendation_distilled": ((RECIPES / "recommendation" / "queries.jsonl",), 0.45),
    "classification": ((HEADLINES,), 0.84),
    "classification_compressed": ((HEADLINES,), 0.84),
    "question_answering": ((XQUAD,), 68.0),
    "question_answering_compressed": ((XQUAD, *SHIFTS), 73.0),
    "question_answering_compressed_openvino": ((XQUAD, *SHIFTS), 73.0),
}
"""By recipe: the files of the set, and the least that the FP32 model reaches on it; the smallest first."""
STATED = {"keep": 0.99, "confidence": 0.95}
"""The gate of the figures in the README."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the checkout"),
]


@dataclass(frozen=True)
class Answered:
    """One evaluation set, answered by the checkpoint in FP32, by the engine in process, and by the server."""

    gate: GateConfig
    """The recipe's."""
    scores: dict[str, Scores]
    engine: Answers
    served: Answers

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        return {name: scores.metrics for name, scores in self.scores.items()}


@pytest.fixture(scope="module", params=SETS)
def answered(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Answered]]:
    name = request.param
    path = RECIPES / f"{name}.yaml"
    recipe = recipes.load(path)
    out = tmp_path_factory.mktemp(name)
    build_recipe(recipe, out)
    # The model is calibrated as the recipe says, and only then asked the evaluation set.
    shipped = Workload.load(recipe, Progress(shown=False))
    *_, compressed = shipped, *(made for _, _, made in shipped.passed(shipped.material(), Progress(shown=False)))
    exact = replace(recipe, lengths=recipes.lengths_of("exact", recipe.engine, path=path))
    form = forms.compile_forms(exact, compressed.source())["exact"]
    config = recipe.gate.model_copy(update={"dataset": str(joined(SETS[name][0], out.parent / f"{name}.json.gz"))})
    data = recipe.task.module.load_data(replace(recipe, gate=config))
    shipped, compressed = (replace(workload, data=data) for workload in (shipped, compressed))
    answers = {"fp32": shipped.answers(shipped.baseline), "int8": compressed.answers(form.infer(recipe.engine))}
    with TritonServer(out, settings=AT_ONCE) as server, Connection(server.grpc_url, timeout_s=60) as connection:
        answers["served"] = ask(connection, recipe.name, data.inputs, batch=7)
    scores = {artefact: shipped.scores(given) for artefact, given in answers.items()}
    yield name, Answered(recipe.gate, scores, answers["int8"], answers["served"])


def joined(files: Sequence[Path], path: Path) -> Path:
    """Returns the only file, or `path` after writing there what all of them, of SQuAD's form, have."""
    if len(files) == 1:
        return files[0]
    data = [article for file in files for article in json.loads(gzip.decompress(file.read_bytes()))["data"]]
    path.write_bytes(gzip.compress(json.dumps({"version": "1.1", "data": data}).encode()))
    return path


def first(metrics: dict[str, Any]) -> float:
    return float(next(iter(metrics.values())))


def test_fp32_reaches_what_it_should(answered: tuple[str, Answered]) -> None:
    name, results = answered
    assert first(results.metrics["fp32"]) >= SETS[name][1]


def test_int8_keeps_99_percent(answered: tuple[str, Answered]) -> None:
    _, results = answered
    assert first(results.metrics["int8"]) >= 0.99 * first(results.metrics["fp32"])


def test_gate_does_not_refuse_it_at_the_stated_confidence(
    answered: tuple[str, Answered], capsys: pytest.CaptureFixture[str]
) -> None:
    name, results = answered
    config = results.gate.model_copy(update=STATED)
    before, after = results.scores["fp32"], results.scores["served"]
    low, high = gate.interval(config.metric, before, after, STATED["confidence"])
    try:
        gate.check(config, before, after)
        verdict = "passed"
    except UndecidedError as exc:  # a GateError that is none of these is the verdict no
        verdict = f"undecided ({exc.reason})"
    kept = after.metrics[config.metric] / before.metrics[config.metric]
    with capsys.disabled():
        print(
            f"\n{name}: {config.metric} {after.metrics[config.metric]:.4f} of {before.metrics[config.metric]:.4f}, "
            f"kept {kept:.2%} [{low:.2%}–{high:.2%} at 95 %] on {after.examples} examples: {verdict}"
        )


def test_every_served_answer_is_the_one_in_process(answered: tuple[str, Answered]) -> None:
    _, results = answered
    for name, expected in results.engine.items():
        if name == "SCORE":
            assert np.allclose(results.served[name], expected, atol=1e-4)
        else:
            assert results.served[name].tolist() == expected.tolist()
    assert results.metrics["served"] == pytest.approx(results.metrics["int8"], abs=1e-4)
