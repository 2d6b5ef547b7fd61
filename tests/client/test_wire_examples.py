"""The requests of docs/wire.md, run against the real server as they stand there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from tritonclient.grpc import service_pb2
from tritonpress_client import Classifier, Connection, QuestionAnswering, Recommender
from tritonpress_client.calls import Calls
from tritonpress_client.options import Options
from tritonpress_client.transport import BlockingTransport
from tritonpress_client.wire import arrays
from tritonpress_server import TritonServer

PAGE = Path(__file__).parents[2] / "docs" / "wire.md"
CONTEXT = "the red lamp for the home ."


def example(heading: str) -> str:
    """Returns the code below a heading of the page."""
    match = re.search(
        rf"^## {heading}\b.*?^```\w+\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert match is not None
    return match[1]


def run(command: list[str], server: TritonServer, **environment: str) -> str:
    """Returns what a command prints that asks the server."""
    variables = {**os.environ, "TRITON_HTTP": server.http_url, **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_outputs(answers: list[Any], server: TritonServer) -> None:
    """Holds the answers to the three requests, as Triton's JSON, to those of the Python client."""
    answering, classification, recommendation = (
        {output["name"]: output for output in answer["outputs"]} for answer in answers
    )
    with QuestionAnswering(server.grpc_url) as client:
        expected = client.answers("Who is it for?", CONTEXT)
    assert answering["ANSWER"]["data"][: len(expected)] == [answer.text for answer in expected]
    assert answering["START"]["data"][: len(expected)] == [answer.start for answer in expected]
    with Classifier(server.grpc_url) as classifier:
        labels = classifier.classify_many(["a red lamp", "an old chair"])
    assert classification["LABEL"]["data"] == [label.label for found in labels for label in found]
    with Recommender(server.grpc_url) as recommender:
        items = recommender.recommend("red lamp\nblue chair")
    assert recommendation["ITEM_ID"]["data"] == [item.item_id for item in items]


def concatenated(text: str) -> list[Any]:
    """Returns the JSON values that stand behind one another."""
    decoder, values, start = json.JSONDecoder(), [], 0
    while start < len(text.rstrip()):
        value, start = decoder.raw_decode(text, start)
        start += len(text[start:]) - len(text[start:].lstrip())
        values.append(value)
    return values


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_javascript(task_server: TritonServer, tmp_path: Path) -> None:
    script = tmp_path / "ask.mjs"
    script.write_text(example("JavaScript"), encoding="utf-8")
    answer = json.loads(run(["node", str(script)], task_server))
    context = f"\U0001f4a1 {CONTEXT}"
    with QuestionAnswering(task_server.grpc_url) as answering:
        expected = answering.answers("Who is it for?", context)
    assert answer["passages"][: len(expected)] == [found.text for found in expected]
    assert [entry["SCORE"] for entry in answer["answers"]][: len(expected)] == pytest.approx(
        [found.score for found in expected], abs=1e-5
    )
    with Classifier(task_server.grpc_url) as classifier:
        labels = classifier.classify_many(["a red lamp", "an old chair"])
    assert [[entry["LABEL"] for entry in found] for found in answer["labels"]] == [
        [label.label for label in found] for found in labels
    ]
    with Recommender(task_server.grpc_url) as recommender:
        items = recommender.recommend("red lamp\nblue chair")
    assert [entry["ITEM_ID"] for entry in answer["items"]] == [item.item_id for item in items]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(task_server: TritonServer) -> None:
    check_outputs(concatenated(run(["bash", "-ec", example("curl")], task_server)), task_server)


@pytest.mark.skipif(shutil.which("javac") is None, reason="no Java compiler is installed")
def test_java(task_server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "Ask.java").write_text(example("Java"), encoding="utf-8")
    printed = run(["java", str(tmp_path / "Ask.java")], task_server)
    check_outputs([json.loads(line) for line in printed.splitlines()], task_server)


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")
def test_go(task_server: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "ask.go").write_text(example("Go"), encoding="utf-8")
    printed = run(["go", "run", str(tmp_path / "ask.go")], task_server, GOCACHE=str(tmp_path / "cache"))
    check_outputs(concatenated(printed), task_server)


def test_the_messages_of_grpcurl(task_server: TritonServer) -> None:
    bodies = re.findall(r"^ask '(.*?)'$", example("grpcurl"), re.DOTALL | re.MULTILINE)
    transport = BlockingTransport()
    calls = Calls(task_server.grpc_url, transport, timeout_s=5, options=Options())
    names = set()
    for body in bodies:
        request = json_format.Parse(body, service_pb2.ModelInferRequest())
        names.add(request.model_name)
        outputs = arrays(transport.run(calls.call("ModelInfer", request, model=request.model_name)), None)
        assert all(len(value) == 1 for value in outputs.values())
    assert names == {"question_answering", "classification", "recommendation"}
    transport.run(calls.close())


def test_the_statuses_of_the_page(task_server: TritonServer) -> None:
    url = f"http://{task_server.http_url}/v2/models"
    seen = []
    for path, body in (
        ("classification/infer", '{"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [1, 1], "data": [" "]}]}'),
        ("nothing/infer", '{"inputs": []}'),
        ("classification/ready", None),
    ):
        words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{url}/{path}"]
        seen.append(run([*words, *(["--json", body] if body else [])], task_server))
    assert seen == ["400", "404", "200"]
    with Connection(task_server.grpc_url) as connection:
        assert connection.ready("classification")
