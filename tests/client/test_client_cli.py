"""`tritonpress-query`: what it prints, and how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_sources import LABELS, contexts
from tritonpress_client import Answer, ModelStatus, QuestionAnswering
from tritonpress_client.cli import main
from tritonpress_client.commands.ask import _sentence
from tritonpress_client.health import Health, table
from tritonpress_client.metadata import ServerMetadata
from tritonpress_server import TritonServer


@pytest.fixture
def url(tiny_server: TritonServer) -> str:
    """The tiny server's address."""
    return tiny_server.grpc_url


def test_recommend_prints_rank_score_and_id(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "red lamp", "blue\nchair", "-k", "3", "--url", url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[4]] == ["red lamp", "blue / chair"]
    ranks, scores, ids = zip(*(line.split() for line in lines[1:4]), strict=True)
    assert ranks == ("1", "2", "3")
    assert sorted(map(float, scores), reverse=True) == list(map(float, scores))
    assert all(item.startswith("T-") for item in ids)


def test_recommend_prints_titles_and_json(url: str, tiny_sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = str(tiny_sources / "catalogue.jsonl")
    assert main(["recommend", "red lamp", "-k", "2", "--json", "--catalogue", catalogue, "--url", url]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["query"] == "red lamp"
    assert [set(item) for item in entry["items"]] == [{"item_id", "score", "title"}] * 2
    assert main(["recommend", "red lamp", "-k", "1", "--catalogue", catalogue, "--url", url]) == 0
    assert entry["items"][0]["title"] in capsys.readouterr().out


def test_recommend_reads_files(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "queries.txt"
    lines.write_text("red lamp\n\nblue chair\n", encoding="utf-8")
    entries = tmp_path / "queries.jsonl"
    # With a byte-order mark, as some editors write it.
    entries.write_text('{"query": "red lamp", "kind": "search"}\n{"query": "blue chair"}\n', encoding="utf-8-sig")
    printed = []
    for path in (lines, entries):
        assert main(["recommend", "--file", str(path), "-k", "1", "--json", "--url", url]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert [json.loads(line)["query"] for line in printed[0].splitlines()] == ["red lamp", "blue chair"]


CONTEXT = "the red lamp for the home .\nthe blue chair for the home ."


@pytest.fixture
def task_url(task_server: TritonServer) -> str:
    """The address of the server with a model of each task."""
    return task_server.grpc_url


def test_ask_prints_the_answers_in_their_sentences(task_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with QuestionAnswering(task_url) as answerer:
        expected = answerer.answers_many([("the kitchen", CONTEXT), ("a\nlamp", CONTEXT)], 2)
    command = ["ask", "the kitchen", "a\nlamp", "--context", CONTEXT, "--url", task_url]
    assert main([*command, "-n", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines.pop(0), lines.pop(4 - sum(not answer.found for answer in expected[0]))] == ["the kitchen", "a / lamp"]
    for answers in expected:
        for rank, answer in enumerate(answers, start=1):
            text = " ".join(answer.text.split()) if answer.found else "(no answer in the context)"
            assert lines.pop(0).split(maxsplit=2) == [str(rank), f"{answer.score:.4f}", text]
            if answer.found:
                assert f"\u00bb{text}\u00ab" in lines.pop(0)
    assert lines == []
    assert main([*command, "--json"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["question"] for entry in entries] == ["the kitchen", "a\nlamp"]
    assert [[Answer(**answer) for answer in entry["answers"]] for entry in entries] == [a[:1] for a in expected]


def test_ask_reads_files(task_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context, requests = tmp_path / "context.txt", tmp_path / "requests.jsonl"
    context.write_text(CONTEXT, encoding="utf-8")
    lines = [json.dumps({"question": question, "context": CONTEXT}) for question in ("the kitchen", "a lamp")]
    requests.write_text("\n\n".join(lines), encoding="utf-8")
    printed = []
    for arguments in (["the kitchen", "a lamp", "--context-file", str(context)], ["--file", str(requests)]):
        assert main(["ask", *arguments, "--json", "--url", task_url]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].count("\n") == 2


def test_that_there_is_no_answer_is_said(task_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with QuestionAnswering(task_url) as answerer:
        context = next(text for text in contexts() if not answerer.ask("the kitchen", text).found)
    assert main(["ask", "the kitchen", "--context", context, "--url", task_url]) == 0
    question, answer = capsys.readouterr().out.splitlines()
    assert question == "the kitchen"
    assert re.fullmatch(r"  1    0\.\d{4}  \(no answer in the context\)", answer)


def test_classify_prints_labels_with_scores(task_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "red lamp", "a\nchair", "--url", task_url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[4]] == ["red lamp", "a / chair"]
    ranks, scores, labels = zip(*(line.split() for line in lines[1:4]), strict=True)
    assert ranks == ("1", "2", "3")
    assert sorted(labels) == LABELS
    assert sum(map(float, scores)) == pytest.approx(1, abs=2e-4)
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "red lamp"}\n{"text": "a\\nchair"}\n', encoding="utf-8")
    assert main(["classify", "--file", str(texts), "-n", "1", "--json", "--url", task_url]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["text"] for entry in entries] == ["red lamp", "a\nchair"]
    assert [entry["labels"][0]["label"] for entry in entries] == [lines[1].split()[2], lines[5].split()[2]]
    assert [list(entry["labels"][0]) for entry in entries] == [["label", "score"]] * 2


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["ask", "what?", "--context", "\x00"], 2, "CONTEXT[0] must have text"),
        (["ask", "what?", "--context", "a", "-n", "4"], 2, "`n` must be an integer in 1..3"),
        (["ask", "what?", "--context", "a", "--model", "recommendation"], 2, "is not for question_answering"),
        (["ask", "what?", "--context", "a", "--timeout-s", "0.000001"], 1, "did not answer within 1e-06 s"),
        (["classify", "\x00"], 2, "TEXT[0] must have text"),
        (["classify", "a", "-n", "0"], 2, "`n` must be an integer above 0"),
        (["classify", "a", "--model", "nothing"], 2, "model 'nothing'"),
    ],
)
def test_one_line_says_what_the_server_refuses(
    task_url: str, arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--url", task_url]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert words in captured.err


def test_health_prints_a_table(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--url", url]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Triton 2.")
    assert ": ready\n" in out
    assert "READY" in out
    assert main(["health", "--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ready"] is True


def test_a_model_that_is_not_ready_shows() -> None:
    def state(*models: ModelStatus) -> Health:
        return Health("host:8001", ServerMetadata("triton", "2.51.0"), True, list(models), [])

    served = ModelStatus("good", "1", "READY", "")
    assert state(served, ModelStatus("old", "1", "UNAVAILABLE", "unloaded")).ready
    broken = state(served, ModelStatus("broken", "1", "UNAVAILABLE", "no model.onnx"))
    assert not broken.ready
    assert "not ready" in table([broken])
    assert "broken: no model.onnx" in table([broken])


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["recommend"], 2, "give either TEXT or --file FILE"),
        (["recommend", "a", "--file", "b"], 2, "give either TEXT or --file FILE"),
        (["recommend", "--file", "no/such/file"], 2, "cannot read no/such/file: No such file"),
        (["recommend", "a", "--catalogue", "no/such/file"], 2, "cannot read no/such/file: No such file"),
        (["recommend", " "], 2, "line 1: `query` is empty"),
        (["recommend", "a", "-k", "11"], 2, "`k` must be an integer in 1..10"),
        (["recommend", "\x00\x07"], 2, "refuses the request"),
        (["recommend", "a", "--model", "nothing"], 2, "model 'nothing'"),
        (["recommend", "a", "--timeout-s", "0.000001"], 1, "did not answer within 1e-06 s"),
        (["recommend", "a", "--timeout-s", "0"], 2, "`timeout_s` must be a finite number"),
    ],
)
def test_one_line_says_what_is_wrong(
    url: str, arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--url", url]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("tritonpress-query: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


@pytest.mark.parametrize("arguments", [[], ["recommend", "a", "-k", "x"], ["recommend", "a", "--nonsense"]])
def test_wrong_arguments_end_with_2_and_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("queries.jsonl", b"red lamp\n", ":1 is not JSON"),
        ("queries.jsonl", b"[" * 100_000, ":1 is not JSON"),
        ("queries.jsonl", b"9" * 5_000, ":1 is not JSON"),
        ("queries.jsonl", b'{"query": "a"}\n{"text": "a"}\n', ':2 must be an object with "query": TEXT'),
        ("queries.txt", b"\n \n", "holds no query"),
        ("queries.txt", b"caf\xe9\n", "is not UTF-8"),
    ],
)
def test_bad_files_are_named(
    name: str, content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert main(["recommend", "--file", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert words in error


@pytest.mark.parametrize("option", ["--token-file", "--admin-token-file"])
@pytest.mark.parametrize("content", [b"tok\xc3\xa9n\n", b"\xff\xfe", b"two\nlines\n"])
def test_file_that_holds_no_token_is_named(
    url: str, tmp_path: Path, option: str, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    arguments = ["recommend", "red lamp", "--url", url, option, str(file)]
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        f"tritonpress-query: {file} must hold a token of printable ASCII alone; put nothing else into the file\n"
    )


@pytest.mark.parametrize("command", [["recommend", "a"], ["health"]])
def test_an_unreachable_server_ends_with_2(
    command: list[str], unreachable_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--url", unreachable_url]) == 2
    error = capsys.readouterr().err
    assert unreachable_url in error
    assert "tritonpress-serve" in error
    assert error.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error(url: str, tmp_path: Path) -> None:
    queries = tmp_path / "queries.txt"
    queries.write_text("red lamp\n" * 2000, encoding="utf-8")
    command = [sys.executable, "-m", "tritonpress_client.cli", "recommend", "--file", str(queries), "--url", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        if process.stdout is None or process.stderr is None:
            raise ValueError("no pipes")
        assert process.stdout.readline() == b"red lamp\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask"], "give QUESTION with either --context TEXT or --context-file FILE, or give --file FILE"),
        (["ask", "what?"], "give QUESTION with either --context TEXT or --context-file FILE"),
        (["ask", "what?", "--context", "a", "--context-file", "b"], "give QUESTION with either --context TEXT or"),
        (["ask", "--file", "a", "--context", "b"], "--file has its own questions and contexts"),
        (["ask", "what?", "--file", "a"], "--file has its own questions and contexts"),
        (["ask", "what?", "--context-file", "no/such/file"], "cannot read no/such/file: No such file"),
        (["ask", "--file", "no/such/file"], "cannot read no/such/file: No such file"),
        (["ask", "what?", "--context", ""], "line 1: `context` is empty"),
        (["classify"], "give either TEXT or --file FILE"),
        (["classify", "--file", "no/such/file"], "cannot read no/such/file: No such file"),
        (["classify", " "], "line 1: `text` is empty"),
    ],
)
def test_requests_at_fault_are_not_sent(
    arguments: list[str], words: str, unreachable_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--url", unreachable_url]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tritonpress-query: {words}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("context", "answer", "line"),
    [
        ("a red lamp", "lamp", "a red »lamp«"),
        ("A chair. The lamp is red. The end.", "red", "The lamp is »red«."),
        ("A chair\nThe lamp  is red\nThe end", "The lamp", "»The lamp« is red"),
        ("The lamp. It is red. It", "lamp. It is red", "The »lamp. It is red«."),
        ("x" * 100 + " lamp " + "y" * 100, "lamp", f"…{'x' * 79} »lamp« {'y' * 79}…"),
        ("ein gro\u00dfer \U0001f4a1 Stuhl", "Stuhl", "ein gro\u00dfer \U0001f4a1 »Stuhl«"),
    ],
)
def test_the_sentence_around_an_answer_is_shown(context: str, answer: str, line: str) -> None:
    start = context.index(answer)
    assert _sentence(context, Answer(answer, 1.0, start, start + len(answer))) == line
