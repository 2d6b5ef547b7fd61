"""On which of a recipe's texts a graph's activations are observed, so that what is gated has not been seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tritonpress_generator.answering import Encoder, Texts, encoded, thinned
from tritonpress_generator.calibration import FEWEST_TEXTS
from tritonpress_generator.errors import InputError
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.records import read_text
from tritonpress_generator.steps.tokenizer.sequences import Sequences
from tritonpress_generator.steps.tokenizer.texts import InvalidTextError


@dataclass(frozen=True)
class Calibration:
    """The texts, as sequences, and where they are from."""

    sequences: Sequences
    source: str
    """The recipe's key that names them."""
    texts: int
    sha256: str
    """Of the texts."""
    used_by: str | None
    """The first graph pass that observes activations; None: the texts only show that the export answers as torch."""

    @property
    def entry(self) -> dict[str, Any]:
        """What the manifest says."""
        return {name: value for name, value in asdict(self).items() if name != "sequences"}


def choose(recipe: Recipe, encoder: Encoder, data: Any, folder: Path) -> Calibration:
    """Returns 512 to 1,023 of many texts: training examples where `folder` has them, else the recipe's samples.

    A recipe that has neither is calibrated on what its task has beside the gate's examples, or, where that is nothing,
    on these, without their labels. A training example that could not be asked, since it is too long, is left out.

    Args:
        recipe: The recipe.
        encoder: Of the task's inputs.
        data: The task's.
        folder: Of the recipe's `data`.

    Raises:
        InputError: The texts cannot be read, or served, or a graph pass is to calibrate on fewer than
            `FEWEST_TEXTS`.
    """
    module = recipe.finetune.module
    files = [folder / file for file in recipe.data.train] if recipe.data else []
    if files and all(file.is_file() for file in files):
        source, texts = "data.train", module.texts(module.load(files, recipe))
    elif recipe.serve.samples is not None:
        source, texts = "serve.samples", _texts(recipe, recipe.serve.samples, encoder)
    else:
        source, texts = recipe.task.module.CALIBRATES_ON, data.calibration
    texts = thinned(texts)
    if source == "data.train":
        texts = _servable(encoder, texts)
    count = len(next(iter(texts.values())))
    word = next((stage.word for stage in recipe.graph if "samples" in type(stage.config).model_fields), None)
    if word is not None and count < FEWEST_TEXTS:
        raise InputError(
            f"{recipe.path}: {word} must be calibrated on at least {FEWEST_TEXTS} texts, {source} has {count}; "
            "add some, or name a file of texts, one a line, as serve.samples"
        )
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode(errors="surrogatepass")).hexdigest()
    return Calibration(encoded(encoder, texts), source, count, digest, word)


def _servable(encoder: Encoder, texts: Texts) -> Texts:
    """Returns `texts` without those that `encoder` refuses."""
    rows = [*zip(*texts.values(), strict=True)]
    kept = []
    for row in rows:
        try:
            encoded(encoder, dict(zip(texts, ([text] for text in row), strict=True)))
        except InputError:
            continue
        kept.append(row)
    return {name: [row[number] for row in kept] for number, name in enumerate(texts)}


def seen_line(entry: Mapping[str, Any]) -> str | None:
    """Returns that a graph pass has seen the gate's texts, where one has, of `Calibration.entry`."""
    if entry["source"] != "gate.dataset" or not entry["used_by"]:
        return None
    return f"{entry['used_by']} has seen the gate's own texts, without labels; name others as serve.samples, or in data"


def samples(recipe: Recipe, encoder: Encoder, data: Any) -> Texts:
    """Returns texts that stand for what will be asked: the recipe's, else the task's.

    Raises:
        InputError: The recipe's samples cannot be read, or one of them not be served.
    """
    file = recipe.asked or recipe.serve.samples
    if file is None:
        own: Texts = data.samples
        return own
    return _texts(recipe, file, encoder)


def _texts(recipe: Recipe, file: str, encoder: Encoder) -> Texts:
    """Returns the texts of a file that `recipe` names, one for each of the task's inputs a line."""
    path = recipe.file(file)
    # Not splitlines(): it also breaks at characters that are of a text, such as U+2028.
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n") if line.strip()]
    if not lines:
        raise InputError(f"{path}: must have at least one text, got none; serve.samples has one a line")
    names = recipe.task.module.INPUTS
    rows = [line.split("\t") for line in lines]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(names):
            rule = " and ".join(names) + (" with a tab between them" if len(names) > 1 else " alone, without tabs")
            raise InputError(f"{path}: text {number} must have {rule}, has {len(row)} parts; correct the line")
        try:
            encoder.encode(*([text.encode()] for text in row))
        except InvalidTextError as exc:
            raise InputError(f"{path}: text {number} {exc}") from exc
    return dict(zip(names, (list(column) for column in zip(*rows, strict=True)), strict=True))
