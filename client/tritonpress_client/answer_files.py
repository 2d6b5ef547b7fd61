"""A file of answers that grows while they come, and goes on where it was: JSONL or CSV, failures beside it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from tritonpress_client.errors import InvalidInputError, TritonpressError
from tritonpress_client.request_files import Request, for_csv


class AnswerFile:
    """Writes an answer a line (JSONL), or a row for each of an answer's values (CSV); a context manager.

    What a run that was killed has left is read first, and kept as it is until `rest`, which comes before `write`, has
    found that it belongs to the requests; then what was cut off is dropped, and the rest is to be asked. Failures are
    written to `PATH.failures.jsonl`, and asked again by the next run.

    Args:
        path: Where answers go; *.jsonl or *.csv.
        keys: What a request's texts are called.
        columns: What an answer's values are called, for a CSV's header.

    Raises:
        InvalidInputError: The path cannot be written, or holds something else.
    """

    def __init__(self, path: Path, keys: Sequence[str], columns: Sequence[str]) -> None:
        if path.suffix not in (".jsonl", ".csv"):
            raise InvalidInputError(f"--out {path} must be *.jsonl or *.csv")
        self.path = path
        self.failures_path = path.with_name(f"{path.name}.failures.jsonl")
        self.failed = 0
        self._is_csv = path.suffix == ".csv"
        self._header = ["line", *keys, "rank", *columns]
        self._keys = tuple(keys)
        self._held: dict[int, dict[str, str]] = {}
        self._cut: int | None = None
        self._kept_bytes = 0
        self._file: BinaryIO | None = None
        self._failures: BinaryIO | None = None

    def __enter__(self) -> AnswerFile:
        with _writing(self.path):
            self._file = self.path.open("r+b" if self.path.exists() else "w+b")
        try:
            self._read(self._file)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close()
        except InvalidInputError:
            # What ends the run is told; a write that fails behind it is not.
            if error is None:
                raise

    def rest(self, requests: Sequence[Request]) -> list[Request]:
        """Returns the requests that have no answer in the file, which goes on after those that have.

        Raises:
            InvalidInputError: The file holds the answers to other requests, or cannot be written.
        """
        known = {request.line: request.texts for request in requests}
        for line, texts in self._held.items():
            if known.get(line) != texts:
                message = f"{self.path} holds answers to another file (see its line {line}); give another --out"
                raise InvalidInputError(message)
        with _writing(self.failures_path):
            self.failures_path.unlink(missing_ok=True)
        file = self._open_file()
        with _writing(self.path):
            file.seek(self._kept_bytes)
            file.truncate()
        if self._is_csv and not self._kept_bytes:
            self._append(_row(self._header))
        return [request for request in requests if request.line not in self._held or request.line == self._cut]

    def write(self, request: Request, name: str, values: Sequence[dict[str, Any]]) -> None:
        """Adds an answer: its values, under `name` in JSONL."""
        if self._is_csv:
            rows = values or [{}]
            text = io.StringIO(newline="")
            writer = csv.writer(text)
            for rank, value in enumerate(rows, start=1):
                given = {"line": request.line, **request.texts, "rank": rank if values else "", **value}
                writer.writerow([given.get(column, "") for column in self._header])
            self._append(text.getvalue())
        else:
            self._append(json.dumps({"line": request.line, **request.texts, name: values}, ensure_ascii=False) + "\n")

    def write_failure(self, request: Request, error: TritonpressError) -> None:
        """Adds a request that was not answered to the file beside."""
        entry = {"line": request.line, **request.texts, "error": type(error).__name__, "message": str(error)}
        # Half of a surrogate pair, which JSON may hold and UTF-8 not, stays as JSON writes it.
        line = (json.dumps(entry, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
        with _writing(self.failures_path):
            if self._failures is None:
                self._failures = self.failures_path.open("wb")
            self._failures.write(line)
        self.failed += 1

    def flush(self) -> None:
        """Hands what was written to the system: it is there when this process is killed."""
        for path, file in self._files():
            with _writing(path):
                file.flush()

    def _files(self) -> list[tuple[Path, BinaryIO]]:
        files = (self.path, self._file), (self.failures_path, self._failures)
        return [(path, file) for path, file in files if file is not None]

    def _close(self) -> None:
        with ExitStack() as stack:
            for path, file in self._files():
                stack.enter_context(_writing(path))
                stack.callback(file.close)

    def _append(self, text: str) -> None:
        with _writing(self.path):
            self._open_file().write(text.encode())

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise InvalidInputError(f"{self.path} is not open; use it in a `with` block")
        return self._file

    def _read(self, file: BinaryIO) -> None:
        with _writing(self.path):
            content = file.read()
        # What was cut off has no end of line; a CSV's last answer may have rows that are missing, and is asked again.
        whole = content[: content.rfind(b"\n") + 1]
        try:
            self._check_fragment(content[len(whole) :], first=not whole)
            self._kept_bytes = self._read_csv(whole) if self._is_csv else self._read_jsonl(whole)
        except (ValueError, KeyError, TypeError, IndexError, RecursionError, csv.Error) as exc:
            message = f"{self.path} is there and no file of answers as they are written here; give another --out"
            raise InvalidInputError(message) from exc

    def _check_fragment(self, fragment: bytes, *, first: bool) -> None:
        """Refuses an end that no answer begins with: somebody else's file must not be cut."""
        start = (_row(self._header) if first else "") if self._is_csv else '{"line": '
        if not fragment.startswith(start.encode()) and not start.encode().startswith(fragment):
            raise ValueError("another beginning")

    def _read_jsonl(self, content: bytes) -> int:
        for line in content.decode().split("\n")[:-1]:
            entry = json.loads(line)
            self._held[int(entry["line"])] = {key: entry[key] for key in self._keys}
        return len(content)

    def _read_csv(self, content: bytes) -> int:
        """Returns where the last answer begins, or the end where there is none."""
        text = content.decode()
        if not text:
            return 0
        records = _records(text)
        if next(records)[1] != self._header:
            raise ValueError("another header")
        answers = [list(group) for _, group in groupby(records, key=lambda record: record[1][0])]
        if not answers:
            return len(content)
        rank = len(self._keys) + 1
        for answer in answers:
            row = answer[0][1]
            self._cut = int(row[0])
            if self._cut in self._held:
                raise ValueError("rows that are apart")
            # The texts before a rank are whole.
            if len(row) > rank:
                self._held[self._cut] = dict(zip(self._keys, row[1:], strict=False))
        for answer in answers[:-1]:
            ranks = [row[rank] for _, row in answer]
            if ranks not in ([""], [str(number) for number in range(1, len(ranks) + 1)]):
                raise ValueError("other ranks")
        return answers[-1][0][0]


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Names the file that cannot be written."""
    try:
        yield
    except OSError as exc:
        raise InvalidInputError(f"cannot write {path}: {exc.strerror or exc}") from exc


def _records(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields a CSV's records with the byte where each begins, whatever its quotes and its ends of line are."""
    start = read = 0

    def lines() -> Iterator[str]:
        nonlocal read
        for line in for_csv(text):
            read += len(line.encode())
            yield line

    # Not strict: a last record may have been cut inside its quotes.
    for record in csv.reader(lines()):
        if record:
            yield start, record
        start = read


def _row(values: Sequence[object]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(values)
    return text.getvalue()
