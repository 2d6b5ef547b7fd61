"""`tritonpress-query` where the disk is full: one line says so, and what was written is gone on with."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from served_models import Served
from tritonpress_client import InvalidInputError
from tritonpress_client.answer_files import AnswerFile
from tritonpress_client.cli import main
from tritonpress_client.request_files import Request

Servers = tuple[Served, Served]


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
from tritonpress_client.cli import main
sys.exit(main(sys.argv[2:]))
"""


def limited(most_bytes: int, words: list[str]) -> subprocess.CompletedProcess[str]:
    """Returns how the command ended where files have that many bytes at most."""
    command = [sys.executable, "-c", LIMITED, str(most_bytes), *words]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.parametrize("count", [1, 2000])
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_an_output_that_cannot_be_written_is_said_in_a_line(
    servers: Servers, tmp_path: Path, arguments: list[str], count: int
) -> None:
    queries = tmp_path / "queries.txt"
    # Some are printed while there is room in the buffer, others are not.
    queries.write_text("red lamp\n" * count, encoding="utf-8")
    command = [sys.executable, "-m", "tritonpress_client.cli", "recommend", "--file", str(queries), *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--url", servers[0].url], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.stderr == "tritonpress-query: cannot write to standard output: No space left on device\n"
    assert done.returncode == 1


@pytest.mark.parametrize("count", [1, 2000])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_answers_for_which_there_is_no_room_are_asked_again(
    servers: Servers, tmp_path: Path, suffix: str, count: int
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / f"out{suffix}"
    source.write_text("".join(json.dumps({"query": str(number)}) + "\n" for number in range(count)), encoding="utf-8")
    words = ["recommend", "--file", str(source), "--out", str(out), "--url", servers[0].url, "-k", "1"]
    most_bytes = 20 * count
    done = limited(most_bytes, words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"tritonpress-query: cannot write {out}: File too large"
    assert "Traceback" not in done.stderr
    assert out.stat().st_size == most_bytes
    assert main(words) == 0
    lines = out.read_text(encoding="utf-8").splitlines()
    assert len(lines) == count + (suffix == ".csv")


def test_failures_for_which_there_is_no_room_are_said_in_a_line(servers: Servers, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"query": "bad"}\n', encoding="utf-8")
    words = ["recommend", "--file", str(source), "--out", str(out), "--url", servers[0].url]
    done = limited(40, words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"tritonpress-query: cannot write {out}.failures.jsonl: File too large"
    assert "Traceback" not in done.stderr


def test_what_ends_a_run_is_told_and_not_what_cannot_be_written_then(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    request = Request(1, {"text": "a"})
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            AnswerFile(tmp_path / "out.jsonl", ["text"], ["label"]) as stopped,
        ):
            stopped.rest([request])
            stopped.write(request, "labels", [])
            resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
            raise KeyboardInterrupt
        with (
            pytest.raises(InvalidInputError, match=r"cannot write .*again.jsonl: File too large"),
            AnswerFile(tmp_path / "again.jsonl", ["text"], ["label"]) as file,
        ):
            file.rest([request])
            file.write(request, "labels", [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
