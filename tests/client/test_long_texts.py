"""Files of long texts."""

from __future__ import annotations

from pathlib import Path

from tritonpress_client.answer_files import AnswerFile
from tritonpress_client.request_files import read_requests


def test_texts_may_be_as_long_in_csv_as_in_jsonl(tmp_path: Path) -> None:
    """Python's `csv` takes 131,072 characters unless it is told otherwise."""
    long = "lamp " * 30_000
    (tmp_path / "in.csv").write_text(f"query\n{long}\n")
    asked = read_requests(tmp_path / "in.csv", "query")
    assert [request.texts for request in asked] == [{"query": long}]
    for _ in range(2):
        with AnswerFile(tmp_path / "out.csv", ["query"], ["label"]) as file:
            for request in file.rest(asked):
                file.write(request, "labels", [{"label": "a"}])
    assert (tmp_path / "out.csv").read_text().count(long) == 1
