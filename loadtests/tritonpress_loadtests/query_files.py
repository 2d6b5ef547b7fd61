"""Files of queries: a reader takes a file's path (for messages) and its text, and gives the queries in its order.

A workload says by the file's suffix how its queries are read; that a file holds none is refused where it is loaded.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import Field, model_validator

from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.settings import Settings

Query = dict[str, str]
Reader = Callable[[Path, str], list[Query]]


def jsonl(*keys: str) -> Reader:
    """Returns a reader of JSON objects, one a line, with text under each of `keys`; other keys are left out."""

    def read(path: Path, text: str) -> list[Query]:
        queries = []
        for number, line in _lines(text):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as exc:
                raise ScenarioError(f"{path}:{number} is not JSON ({exc}); write one object a line") from exc
            if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in keys):
                raise ScenarioError(f"{path}:{number} must be an object with text under: {', '.join(keys)}")
            queries.append({key: entry[key] for key in keys})
        return queries

    return read


def tsv(*columns: str) -> Reader:
    """Returns a reader of values between tabs, without quoting; the first line names the columns, others are left."""

    def read(path: Path, text: str) -> list[Query]:
        lines = _lines(text)
        first, header = next(lines, (1, ""))
        names = header.split("\t")
        missing = [column for column in columns if column not in names]
        if missing:
            raise ScenarioError(
                f"{path}:{first} must name the column `{missing[0]}`, got {', '.join(names) or 'nothing'};"
                " write the columns' names into the first line, a tab between them"
            )
        queries = []
        for number, line in lines:
            values = line.split("\t")
            if len(values) != len(names):
                raise ScenarioError(
                    f"{path}:{number} must have {len(names)} values as the first line has, got {len(values)};"
                    " put one tab between two values, and none into a value"
                )
            row = dict(zip(names, values, strict=True))
            queries.append({column: row[column] for column in columns})
        return queries

    return read


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yields the lines that hold something, with their numbers."""
    # Not splitlines(): it also breaks at characters that JSON allows within a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def count_words(query: Query) -> int:
    """Returns the number of words of all of a query's texts."""
    return len(" ".join(query.values()).split())


def length_class(words: int) -> int:
    """Returns the power of two that `words` does not exceed: queries of one class are of like length."""
    return 1 << max(0, words - 1).bit_length()


class WordHistogram(Settings):
    """A distribution of the queries' lengths in words (of all of a query's texts)."""

    up_to: tuple[int, ...] = Field(min_length=1)
    """The longest of each bin, ascending; a bin begins behind the one before."""
    shares: tuple[float, ...]
    """How likely a request is of each bin; they add up to 1."""

    @model_validator(mode="after")
    def _is_a_distribution(self) -> WordHistogram:
        if list(self.up_to) != sorted(set(self.up_to)) or self.up_to[0] < 1:
            raise ValueError(f"`up_to` must ascend from 1 or more, got {list(self.up_to)}")
        if len(self.shares) != len(self.up_to) or min(self.shares) < 0:
            raise ValueError(f"`shares` must hold a share of 0 or more for each bin, got {list(self.shares)}")
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"`shares` must add up to 1, got {sum(self.shares):g}")
        return self


def weights_by_words(wanted: WordHistogram | None, lengths: list[int]) -> list[float]:
    """Returns how likely each query is, so that the drawn ones have the wanted lengths.

    Raises:
        ScenarioError: No query has the length of a bin that is asked for.
    """
    if wanted is None:
        return [1.0] * len(lengths)
    bins = [bisect_left(wanted.up_to, length) for length in lengths]
    held = Counter(bins)
    for number, (most, share) in enumerate(zip(wanted.up_to, wanted.shares, strict=True)):
        if share and not held[number]:
            least = wanted.up_to[number - 1] + 1 if number else 1
            raise ScenarioError(
                f"no query has {least} to {most} words, {share:.0%} should; add some or set its share to 0"
            )
    return [wanted.shares[place] / held[place] if place < len(wanted.shares) else 0.0 for place in bins]
