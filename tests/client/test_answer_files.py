"""A file of answers that others have had in hands, or that is not ours: it is gone on with, or left as it is."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tritonpress_client import InvalidInputError
from tritonpress_client.answer_files import AnswerFile
from tritonpress_client.request_files import Request

KEYS, COLUMNS = ("text",), ("label", "score")
TEXTS = ["red, lamp", "blue", 'a "wide"\nchair', "\n\n", "ü", "last, one"]
REQUESTS = [Request(line, {"text": text}) for line, text in enumerate(TEXTS, start=1)]


def answer(path: Path, requests: Sequence[Request] = REQUESTS) -> list[int]:
    """Returns the lines that were still to be asked, after writing two labels for each."""
    with AnswerFile(path, KEYS, COLUMNS) as file:
        rest = file.rest(requests)
        for request in rest:
            file.write(request, "labels", [{"label": "a\nb", "score": 0.5}, {"label": "c", "score": 0.25}])
    return [request.line for request in rest]


def rows(content: bytes) -> list[list[str]]:
    """Returns a CSV's rows."""
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


def saved(content: bytes, line_end: str, quoting: int) -> bytes:
    """Returns a CSV as another program saves it."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end, quoting=quoting).writerows(rows(content))  # type: ignore[arg-type]
    return text.getvalue().encode()


@pytest.mark.parametrize("cut", [0, 1, 9, 20, 25])
@pytest.mark.parametrize(
    ("line_end", "quoting"),
    [("\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_NONNUMERIC)],
)
def test_a_csv_that_another_program_has_saved_is_gone_on_with(
    tmp_path: Path, line_end: str, quoting: int, cut: int
) -> None:
    path = tmp_path / "out.csv"
    assert answer(path) == [1, 2, 3, 4, 5, 6]
    whole = path.read_bytes()
    again = saved(whole, line_end, quoting)
    path.write_bytes(again[: len(again) - cut])
    # The last answer may lack rows.
    assert answer(path) == [6]
    assert rows(path.read_bytes()) == rows(whole)


def test_an_empty_line_that_an_editor_has_added_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    answer(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\n")
    assert answer(path) == [6]
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "changed",
    [
        lambda found: [found[0], *sorted(found[1:], key=lambda row: row[-1])],
        lambda found: [found[0], *found[:0:-1]],
        lambda found: [found[0], *found[2:]],
        lambda found: [found[0], *found[1:3], *found[1:]],
    ],
    ids=["sorted by score", "upside down", "without a row", "with rows twice"],
)
def test_rows_that_are_not_as_they_were_written_are_refused_and_kept(
    tmp_path: Path, changed: Callable[[list[list[str]]], list[list[str]]]
) -> None:
    path = tmp_path / "out.csv"
    answer(path)
    text = io.StringIO(newline="")
    csv.writer(text).writerows(changed(rows(path.read_bytes())))
    path.write_bytes(text.getvalue().encode())
    with pytest.raises(InvalidInputError, match="no file of answers as they are written here; give another --out"):
        answer(path)
    assert path.read_bytes() == text.getvalue().encode()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_answers_to_another_file_stay_with_their_failures(tmp_path: Path, name: str, count: int) -> None:
    path, failures = tmp_path / name, tmp_path / f"{name}.failures.jsonl"
    answer(path, REQUESTS[:count])
    failures.write_text('{"line": 4}\n', encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(InvalidInputError, match="holds answers to another file"):
        answer(path, [Request(line, {"text": "another"}) for line in range(1, 4)])
    assert failures.read_text(encoding="utf-8") == '{"line": 4}\n'
    assert path.read_bytes() == before
    answer(path)
    assert not failures.exists()
