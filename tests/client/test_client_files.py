"""`tritonpress-query … --file FILE --out FILE`: formats, failures to a side file, going on where it was, progress."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from at_once import AT_ONCE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served_models import Served, write_models
from tritonpress_client.answer_files import AnswerFile
from tritonpress_client.cli import main
from tritonpress_client.progress import ProgressBar
from tritonpress_client.request_files import Request, read_requests
from tritonpress_server import TritonServer
from waiting import until

Servers = tuple[Served, Served]


def write_queries(path: Path, queries: list[str]) -> Path:
    """Returns the path of JSONL with a query a line."""
    path.write_text("".join(json.dumps({"query": query}) + "\n" for query in queries), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, object]]:
    """Returns a JSONL file's objects."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def command(servers: Servers, source: Path, out: Path, *more: str) -> list[str]:
    """Returns the arguments of a run over a file."""
    urls = ",".join(served.url for served in servers)
    return ["recommend", "--file", str(source), "--out", str(out), "--url", urls, *more]


def test_answers_go_to_a_file_in_order(servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queries = [f"query\n{number} ü" for number in range(50)]
    source = write_queries(tmp_path / "in.jsonl", queries)
    assert main(command(servers, source, tmp_path / "out.jsonl", "-k", "1")) == 0
    entries = read(tmp_path / "out.jsonl")
    assert entries == [
        {"line": number, "query": query, "items": [{"item_id": query, "score": 3.0}]}
        for number, query in enumerate(queries, start=1)
    ]
    assert not (tmp_path / "out.jsonl.failures.jsonl").exists()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("50/50  ")


def test_csv_in_and_out(servers: Servers, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text('id,query\n1,"red, lamp"\n2,"two\nlines"\n', encoding="utf-8-sig")
    assert main(command(servers, source, tmp_path / "out.csv", "-k", "2")) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8"), newline="")))
    assert list(rows[0]) == ["line", "query", "rank", "item_id", "score", "title"]
    assert [(row["line"], row["query"], row["rank"], row["item_id"]) for row in rows[::2]] == [
        ("2", "red, lamp", "1", "red, lamp"),
        ("4", "two\nlines", "1", "two\nlines"),
    ]
    assert [row["rank"] for row in rows] == ["1", "2", "1", "2"]


def test_failures_go_to_a_side_file_and_are_asked_again(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_queries(tmp_path / "in.jsonl", ["a", "bad", "b", "c", "bad 2"])
    # What is late by its share of the deadline is sent again, and would count.
    words = command(servers, source, tmp_path / "out.jsonl", "--timeout-s", "60")
    assert main(words) == 2
    assert "2 of 5 failed, see" in capsys.readouterr().err
    failures = read(tmp_path / "out.jsonl.failures.jsonl")
    assert [(entry["line"], entry["query"], entry["error"]) for entry in failures] == [
        (2, "bad", "InvalidInputError"),
        (5, "bad 2", "InvalidInputError"),
    ]
    assert str(failures[0]["message"]).startswith("model 'recommendation' at ")
    assert [entry["line"] for entry in read(tmp_path / "out.jsonl")] == [1, 3, 4]
    asked = sum(len(served.executed()) for served in servers)
    assert main(words) == 2
    # Only the two are asked again: together, then each alone.
    assert sum(len(served.executed()) for served in servers) - asked == 3
    assert "3 of 5 are answered in" in capsys.readouterr().err


def test_a_text_that_no_server_could_answer_is_the_failure_of_its_line(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chunks of four lines, of which the last has no other.
    monkeypatch.setattr("tritonpress_client.file_run._BATCHES_A_CHUNK", 1)
    source = write_queries(tmp_path / "in.jsonl", ["a", "b", "c", "d", "e", " ", "\ud800 ü", "f", ""])
    words = command(servers, source, tmp_path / "out.jsonl")
    empty, half = "`query` is empty; give it some text", "`query` cannot be encoded as UTF-8 (surrogates not allowed"
    for left in (9, 3):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "\n9/9  " in f"\n{error}"
        assert "3 of 9 failed, see" in error
        assert f"{9 - left} of 9 are answered" in error or left == 9
        failures = read(tmp_path / "out.jsonl.failures.jsonl")
        assert [(entry["line"], entry["query"]) for entry in failures] == [(6, " "), (7, "\ud800 ü"), (9, "")]
        assert [entry["message"] for entry in failures][::2] == [empty, empty]
        assert str(failures[1]["message"]).startswith(half)
        assert [entry["line"] for entry in read(tmp_path / "out.jsonl")] == [1, 2, 3, 4, 5, 8]
    assert main([*words[:3], *words[5:], "--json"]) == 2
    printed = capsys.readouterr()
    assert [json.loads(line)["query"] for line in printed.out.splitlines()] == ["a", "b", "c", "d", "e", "f"]
    assert [line.split(": ", 2)[1] for line in printed.err.splitlines()] == ["line 6", "line 7", "line 9"]


def test_a_line_that_is_refused_alone_is_a_failure_and_an_argument_is_none(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_queries(tmp_path / "in.jsonl", ["bad"]), tmp_path / "out.jsonl"
    assert main(command(servers, source, out, "-k", "4")) == 2
    assert "tritonpress-query: `k` must be an integer in 1..3" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl.failures.jsonl").exists()
    assert main(command(servers, source, out)) == 2
    assert "1 of 1 failed, see" in capsys.readouterr().err
    assert [entry["line"] for entry in read(tmp_path / "out.jsonl.failures.jsonl")] == [1]


def test_a_failure_of_the_server_ends_with_1(servers: Servers, tmp_path: Path) -> None:
    source = write_queries(tmp_path / "in.jsonl", ["a", "b", "c", "d", "fail"])
    assert main(command(servers, source, tmp_path / "out.jsonl")) == 1
    assert [entry["error"] for entry in read(tmp_path / "out.jsonl.failures.jsonl")] == ["ServerError"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_run_that_was_killed_goes_on(servers: Servers, tmp_path: Path, suffix: str) -> None:
    queries = [f"query {number}" for number in range(3000)]
    # In the second chunk: the run has written something, and does not end before it is killed.
    queries[1500] = f"wait {tmp_path / 'release'}"
    source = write_queries(tmp_path / "in.jsonl", queries)
    out = tmp_path / f"out{suffix}"
    arguments = command(servers, source, out, "-k", "1", "--timeout-s", "120")
    words = [sys.executable, "-m", "tritonpress_client.cli", *arguments]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        has_written = until(lambda: out.exists() and out.stat().st_size > 1000)
        process.send_signal(signal.SIGKILL)
    (tmp_path / "release").touch()
    assert has_written
    left = out.read_bytes()
    assert left.count(b"\n") < 3000
    # As if the system had stopped in the middle of a line.
    out.write_bytes(left[:-7])
    assert main(command(servers, source, out, "-k", "1")) == 0
    text = out.read_text(encoding="utf-8")
    entries = (
        [json.loads(line) for line in text.splitlines()]
        if suffix == ".jsonl"
        else list(csv.DictReader(io.StringIO(text, newline="")))
    )
    assert sorted(int(entry["line"]) for entry in entries) == list(range(1, 3001))
    assert {str(entry["query"]) for entry in entries} == set(queries)


@pytest.mark.parametrize(
    ("out", "content", "words"),
    [
        ("out.txt", None, "must be *.jsonl or *.csv"),
        ("no/such/out.jsonl", None, "cannot write"),
        ("out.jsonl", '{"line": 1, "query": "another", "items": []}\n', "holds answers to another file"),
        ("out.jsonl", "my notes\n", "is there and no file of answers"),
        ("out.jsonl", "my notes", "is there and no file of answers"),
        ("out.csv", "notes", "is there and no file of answers"),
        ("out.csv", "a,b\n1,2\n", "is there and no file of answers"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_lost(
    out: str, content: str | None, words: str, servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_queries(tmp_path / "in.jsonl", ["a"])
    if content is not None:
        (tmp_path / out).write_text(content, encoding="utf-8")
    assert main(command(servers, source, tmp_path / out)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    if content is not None:
        assert (tmp_path / out).read_text(encoding="utf-8") == content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text\na\n", "must have a header with query; it lacks query"),
        ("id,query\n1\n", ":2 has fewer columns than the header"),
        ('query\n"a\n', ":2 is not CSV"),
        ("query\n", "holds no query"),
    ],
)
def test_bad_csv_is_named(content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.csv"
    source.write_text(content, encoding="utf-8")
    assert main(["recommend", "--file", str(source)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(source) in error


def test_out_belongs_to_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", "a", "--out", "b.jsonl"]) == 2
    assert "--out is for the answers to --file FILE" in capsys.readouterr().err


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=6), cut=st.integers(0, 400), suffix=st.sampled_from([".jsonl", ".csv"])
)
def test_a_file_that_was_cut_anywhere_is_completed(
    texts: list[str], cut: int, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / f"out{suffix}"
    requests = [Request(line, {"text": text}) for line, text in enumerate(texts, start=1)]
    values = [{"label": "a\n,b", "score": 0.5}, {"label": "\r", "score": 0.25}]
    for _ in range(2):
        with AnswerFile(path, ["text"], ["label", "score"]) as file:
            for request in file.rest(requests):
                file.write(request, "labels", values)
        whole = path.read_bytes()
        path.write_bytes(whole[:cut])
    with AnswerFile(path, ["text"], ["label", "score"]) as file:
        for request in file.rest(requests):
            file.write(request, "labels", values)
    assert path.read_bytes() == whole


def test_the_bar_on_a_terminal_and_the_lines_elsewhere() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        bar = ProgressBar(40, 10, stream=stream)
        time.sleep(0.11)
        bar.show(20, 1)
        bar.show(40, 1)
    assert "\r\x1b[K" + "█" * 15 + "░" * 15 + "  20/40  " in terminal.getvalue()
    assert terminal.getvalue().endswith("1 failed\n")
    assert pipe.getvalue().startswith("40/40  ")
    assert pipe.getvalue().count("\n") == 1


def test_requests_have_their_line(tmp_path: Path) -> None:
    path = write_queries(tmp_path / "in.jsonl", ["a", "b"])
    path.write_text(path.read_text() + "\n\n" + '{"query": "c"}\n')
    assert [request.line for request in read_requests(path, "query")] == [1, 2, 5]


def test_health_of_several_servers(servers: Servers, unreachable_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    urls = ",".join([servers[0].url, unreachable_url, servers[1].url])
    assert main(["health", "--url", urls, "--window-s", "0.1"]) == 1
    out = capsys.readouterr().out
    for served in servers:
        assert f"at {served.url}: ready" in out
        assert f"\n{served.url}  recommendation" in out
    assert f"{unreachable_url}: no Triton server answers at {unreachable_url}" in out
    assert "counted for 0.1 s" in out
    assert main(["health", "--url", urls, "--json"]) == 1
    assert [json.loads(line)["ready"] for line in capsys.readouterr().out.splitlines()] == [True, False, True]
    assert main(["health", "--url", servers[0].url, "--window-s", "-1"]) == 2
    assert "--window-s must be in 0..3600 seconds, got -1" in capsys.readouterr().err


def test_health_beside_a_server_that_denies_access(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = write_models(tmp_path / "closed", "closed", instances=1)
    arguments = ["--grpc-restricted-protocol=statistics:gate=secret"]
    with TritonServer(repository, log_path=tmp_path / "log", extra_args=arguments, settings=AT_ONCE) as server:
        urls = f"{server.grpc_url},{servers[0].url}"
        assert main(["health", "--url", urls]) == 1
        out = capsys.readouterr().out
        assert f"{server.grpc_url}: the server at {server.grpc_url} denies access" in out
        assert f"at {servers[0].url}: ready" in out
        assert main(["health", "--url", urls, "--json"]) == 1
        states = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [state["ready"] for state in states] == [False, True]
        assert "denies access" in states[0]["error"]
