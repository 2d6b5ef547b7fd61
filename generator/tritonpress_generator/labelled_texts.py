"""Reads texts with their labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tritonpress_generator.errors import InputError
from tritonpress_generator.records import records

_SEPARATOR = "|"


@dataclass(frozen=True)
class LabelledText:
    """A text and its labels: one, or, of a multi-label task, any number."""

    text: str
    labels: tuple[str, ...]


def load(path: Path, *, multi_label: bool = False, labelled: bool = True) -> list[LabelledText]:
    """Returns the rows of a JSONL, CSV or TSV file with the fields `text` and `label`.

    The label of a multi-label task may be a list (JSONL), or labels with `|` between them; where texts need not be
    `labelled`, it may be missing.

    Raises:
        InputError: Unreadable, not UTF-8, or a row without text or without a label; names it.
    """
    rows = []
    for number, record in records(path):
        text, label = record.get("text"), record.get("label")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{path}:{number}: 'text' must be text, got {text!r}; write one, or leave the row out")
        missing = label is None and not labelled
        rows.append(LabelledText(text, () if missing else _labels(label, multi_label, where=f"{path}:{number}")))
    if not rows:
        raise InputError(f"{path}: must have at least one text, got none")
    return rows


def _labels(label: object, multi_label: bool, *, where: str) -> tuple[str, ...]:
    if multi_label and isinstance(label, str):
        label = [part.strip() for part in label.split(_SEPARATOR) if part.strip()]
    if multi_label and isinstance(label, list) and all(isinstance(part, str) and part for part in label):
        return tuple(dict.fromkeys(label))
    if multi_label or not isinstance(label, str) or not label.strip():
        rule = "must be a list of labels" if multi_label else "must be a label"
        raise InputError(f"{where}: 'label' {rule}, got {label!r}; write one")
    return (label.strip(),)
