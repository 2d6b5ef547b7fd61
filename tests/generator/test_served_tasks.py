"""Question answering and classification in the real Triton: every form and layout answers as the model in process."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from at_once import AT_ONCE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_sources import TASKS, write_task
from tritonpress_client import Connection, InvalidInputError
from tritonpress_generator import builds, cli
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import Answers, Texts
from tritonpress_generator.asking import ask
from tritonpress_generator.build import build
from tritonpress_generator.progress import Progress
from tritonpress_generator.tune import knobs
from tritonpress_generator.tune.bench import bench
from tritonpress_generator.workload import Workload
from tritonpress_server import TritonServer

FORMS: dict[str, object] = {"exact": "exact", "ragged": "ragged", "buckets": [16, 32, 48]}
WORKLOADS = {
    f"{task}_{layout}_{form}": (task, layout, form)
    for task, layout, form in (
        ("question_answering", "single", "exact"),
        ("question_answering", "single", "ragged"),
        ("question_answering", "single", "buckets"),
        ("question_answering", "scripting", "ragged"),
        ("question_answering", "scripting", "buckets"),
        ("classification", "single", "ragged"),
        ("classification", "scripting", "exact"),
    )
}
"""What is answered in rows is held in every form by test_served_forms.py."""
MAX_BATCH = 8


@dataclass(frozen=True)
class Served:
    """A server with all workloads, and each task's recipe and answers in process, of the model in FP32."""

    url: str
    repository: Path
    recipes: dict[str, Path]
    texts: dict[str, Texts]
    answers: dict[str, Answers]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    written, texts, answers = {}, {}, {}
    for task in TASKS:
        (folder / task).mkdir()
        path = write_task(folder / task, task)
        settings_of = yaml.safe_load(path.read_text()) | {"graph": ["fuse"]}
        for workload, (of_task, layout, form) in WORKLOADS.items():
            if of_task == task:
                serve = settings_of["serve"] | {"steps": layout, "lengths": FORMS[form], "max_batch_size": MAX_BATCH}
                path.write_text(yaml.safe_dump(settings_of | {"name": workload, "serve": serve}))
                build(path, folder / "repository")
        loaded = Workload.load(recipes.load(path), Progress(shown=False))
        written[task], texts[task], answers[task] = path, loaded.data.inputs, loaded.answers(loaded.baseline)
    with TritonServer(folder / "repository", settings=AT_ONCE) as server:
        yield Served(server.grpc_url, folder / "repository", written, texts, answers)


def rows(answers: Answers) -> list[dict[str, Any]]:
    """Returns each text's answers."""
    count = len(next(iter(answers.values())))
    return [{name: values[i].tolist() for name, values in answers.items()} for i in range(count)]


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, values in expected.items():
        if name == "SCORE":
            assert got[name] == pytest.approx(values, abs=1e-5)
        else:
            assert got[name] == values


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("batch", [1, MAX_BATCH])
def test_served_answers_are_those_in_process(served: Served, workload: str, batch: int) -> None:
    task = WORKLOADS[workload][0]
    with Connection(served.url) as connection:
        got = ask(connection, workload, served.texts[task], batch=batch)
    for one, expected in zip(rows(got), rows(served.answers[task]), strict=True):
        assert_same(one, expected)


def test_an_engine_that_a_step_calls_comes_with_its_workload(served: Served) -> None:
    workload = "classification_scripting_exact"
    configs = knobs.read_configs(served.repository, builds.read_manifest(served.repository, workload), workload)
    with bench(served.repository, configs, []) as own, Connection(own.url) as connection:
        own.serve({})
        got = ask(connection, workload, served.texts["classification"], batch=MAX_BATCH)
    for one, expected in zip(rows(got), rows(served.answers["classification"]), strict=True):
        assert_same(one, expected)


def test_an_execution_that_calls_of_a_step_share_has_no_more_tokens_than_one(served: Served) -> None:
    most = {}
    for layout in ("single", "scripting"):
        steps = builds.read_manifest(served.repository, f"question_answering_{layout}_ragged")["steps"]
        settings = json.loads((served.repository / steps["model"] / "1" / "settings.json").read_text(encoding="utf-8"))
        most[layout] = settings["batching"]["max_tokens"]
    assert most["scripting"] == most["single"] // MAX_BATCH


@pytest.mark.parametrize("workload", WORKLOADS)
@given(data=st.data())
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_requests_of_any_size_at_the_same_time(served: Served, workload: str, data: st.DataObject) -> None:
    task = WORKLOADS[workload][0]
    texts, expected = served.texts[task], rows(served.answers[task])
    count = len(expected)
    chosen = data.draw(
        st.lists(st.lists(st.integers(0, count - 1), min_size=1, max_size=MAX_BATCH), min_size=8, max_size=8)
    )
    with Connection(served.url) as connection, ThreadPoolExecutor(8) as pool:

        def one(indices: list[int]) -> Answers:
            return ask(
                connection, workload, {name: [c[i] for i in indices] for name, c in texts.items()}, batch=MAX_BATCH
            )

        for indices, got in zip(chosen, pool.map(one, chosen), strict=True):
            for index, answer in zip(indices, rows(got), strict=True):
                assert_same(answer, expected[index])


QA = [workload for workload, (task, *_) in WORKLOADS.items() if task == "question_answering"]
BAD = {
    "no question": (b"", b"a lamp", "QUESTION[0] must have text"),
    "white space": (b"lamp", b" \n\t ", "CONTEXT[0] must have text"),
    "control characters": (b"\x00\x01", b"a lamp", "QUESTION[0] must have text"),
    "not UTF-8": (b"lamp", b"\xff\xfe", "CONTEXT[0] must be UTF-8, got byte 0xff at 0"),
    "5 MB": (b"lamp", b"lamp " * 1_000_000, "CONTEXT[0] must be at most 262144 bytes, got 5000000"),
}


def request(question: bytes, context: bytes) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.array([[text]], np.object_) for name, text in (("QUESTION", question), ("CONTEXT", context))}


@pytest.mark.parametrize("workload", QA)
def test_bad_questions_are_refused_and_disturb_no_other(served: Served, workload: str) -> None:
    texts, expected = served.texts["question_answering"], rows(served.answers["question_answering"])

    def good(index: int) -> None:
        one = {name: [column[index]] for name, column in texts.items()}
        assert_same(rows(ask(connection, workload, one, batch=1))[0], expected[index])

    def bad(name: str) -> None:
        question, context, message = BAD[name]
        with pytest.raises(InvalidInputError, match=re.escape(message)):
            connection.infer(workload, request(question, context))

    with Connection(served.url, timeout_s=30) as connection, ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(good, index) for index in range(20)]
        jobs += [pool.submit(bad, name) for name in BAD]
        jobs += [pool.submit(good, index) for index in range(20, 40)]
        for job in jobs:
            job.result()


@pytest.mark.parametrize("workload", QA)
def test_a_thousand_windows_are_divided_and_answered(served: Served, workload: str) -> None:
    words = ("the red lamp for the home . " * 5000)[:200_000].strip()
    with Connection(served.url, timeout_s=240) as connection:
        answer = connection.infer(workload, request(b"a lamp", words.encode()))
    for text, first, last in zip(answer["ANSWER"][0], answer["START"][0], answer["END"][0], strict=True):
        assert words[first:last] == text.decode()


@pytest.mark.parametrize("workload", QA)
@given(context=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_offsets_are_exact_whatever_the_text(served: Served, workload: str, context: str) -> None:
    with Connection(served.url) as connection:
        try:
            answer = connection.infer(workload, request(b"a lamp", context.encode()))
        except InvalidInputError:
            return
    for text, first, last in zip(answer["ANSWER"][0], answer["START"][0], answer["END"][0], strict=True):
        assert context[first:last] == text.decode()


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_is_the_same_for_every_target(served: Served, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = served.recipes[task]
    figures = {}
    for target in ("torch", "onnx", "engine", served.url):
        assert cli.main(["evaluate", str(recipe), "--target", target, "--json"]) == 0
        figures[target] = yaml.safe_load(capsys.readouterr().out)["metrics"]
    first = figures["torch"]
    assert first
    for metrics in figures.values():
        assert metrics == pytest.approx(first, abs=1e-5)


@pytest.mark.parametrize(
    ("target", "message"),
    [("127.0.0.1:1", "no Triton server answers at 127.0.0.1:1"), ("onxx", "must be torch, onnx, engine or HOST:PORT")],
)
def test_evaluation_of_a_target_that_is_not_there(
    served: Served, target: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", str(served.recipes["classification"]), "--target", target]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
