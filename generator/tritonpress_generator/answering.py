"""From the texts that are asked to the public answers, with any `Infer`: for build, training, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.signature import Signature
from tritonpress_generator.steps.single.pipeline import Pipeline
from tritonpress_generator.steps.tokenizer.sequences import Batching, Sequences
from tritonpress_generator.steps.tokenizer.served import ENCODERS
from tritonpress_generator.steps.tokenizer.texts import InvalidTextError

Texts = Mapping[str, Sequence[str]]
"""The public inputs by name, a text an element."""
Answers = dict[str, Array]
"""The public outputs by name, `(texts, n)`."""
_SLICE = 64
_GOLDEN_REQUESTS = 12


class Encoder(Protocol):
    """Texts to sequences, as `steps/tokenizer` has them."""

    @property
    def encode(self) -> Callable[..., Sequences]:
        """Takes a column of texts for each public input, and returns what they become."""


Postprocessor = Callable[[Mapping[str, Array], Mapping[str, Array], Mapping[str, Array]], Answers]


def make_encoder(recipe: Recipe, signature: Signature, tokenizer: Tokenizer) -> Encoder:
    """Returns the encoder of the recipe's public inputs."""
    task = recipe.task.module
    return ENCODERS[task.ENCODER](Tokenizer.from_str(tokenizer.to_str()), **task.encoder_settings(recipe, signature))


def thinned(texts: Texts, most: int = 512) -> Texts:
    """Returns fewer than twice `most` of the texts, spread over all of them."""
    step = max(1, len(next(iter(texts.values()))) // most)
    return {name: column[::step] for name, column in texts.items()}


def columns(texts: Texts, part: slice = slice(None)) -> dict[str, list[bytes]]:
    """Returns the texts of `part` in UTF-8.

    Raises:
        InputError: A text cannot be encoded.
    """
    try:
        return {name: [text.encode() for text in column[part]] for name, column in texts.items()}
    except UnicodeEncodeError as exc:
        raise InputError(
            f"text {exc.object[:60]!r} must be Unicode, has half a surrogate pair at {exc.start}; correct it"
        ) from exc


def encoded(encoder: Encoder, texts: Texts) -> Sequences:
    """Returns what `texts` become.

    Raises:
        InputError: One of them cannot be served; says which and why.
    """
    try:
        return encoder.encode(*columns(texts).values())
    except InvalidTextError as exc:
        name, column = list(texts.items())[exc.column]
        raise InputError(f"{name} {column[exc.index][:60]!r} {exc}") from exc


def asked(
    infer: Infer, signature: Signature, encoder: Encoder, postprocessor: Postprocessor
) -> Callable[[Texts], Answers]:
    """Returns what answers texts with `infer`, each sequence alone, as most are when they are served.

    Args:
        infer: Takes a padded batch.
        signature: What it gives.
        encoder: Of the public inputs, in their order.
        postprocessor: Of the task.

    What is returned raises InputError for a text that cannot be served.
    """
    pipeline = Pipeline(alone, partial(map, infer), postprocessor, of_tokens=signature.of_tokens)

    def ask(texts: Texts) -> Answers:
        count = len(next(iter(texts.values())))
        parts: list[Answers] = []
        with tqdm(total=count, desc="asking", unit="text", leave=False, disable=None) as bar:
            for start in range(0, count, _SLICE):
                part = {name: column[start : start + _SLICE] for name, column in texts.items()}
                sequences = encoded(encoder, part)
                arrays = {name: np.array(column, np.object_) for name, column in columns(part).items()}
                parts.append(pipeline(sequences, arrays))
                bar.update(len(sequences.counts))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return ask


def alone(sequences: Sequences) -> Iterator[tuple[list[int], dict[str, Array]]]:
    """Yields each of `sequences` as an execution of its own, at its exact length."""
    batching = Batching(pad_id=0, max_sequences=1)
    return batching.executions(sequences)


def plain(value: Any) -> Any:
    """Returns an element of an answer as JSON has it."""
    return value.decode() if isinstance(value, bytes) else value.item()


def listed(answers: Answers) -> dict[str, list[list[Any]]]:
    """Returns answers as JSON has them."""
    return {name: [[plain(value) for value in row] for row in answer] for name, answer in answers.items()}


def unlisted(answers: Mapping[str, Sequence[Sequence[Any]]]) -> Answers:
    """Returns what `listed` was given."""
    arrays: Answers = {}
    for name, rows in answers.items():
        text = any(isinstance(value, str) for row in rows for value in row)
        arrays[name] = (
            np.array([[value.encode() for value in row] for row in rows], np.object_) if text else (np.array(rows))
        )
    return arrays


def golden(texts: Texts, answers: Answers) -> list[dict[str, Any]]:
    """Returns requests, spread over what was asked, with the answers that they must get."""
    total = len(next(iter(texts.values())))
    chosen = np.linspace(0, total - 1, min(_GOLDEN_REQUESTS, total)).round().astype(int)
    return [
        {
            "inputs": {name: column[i] for name, column in texts.items()},
            "outputs": {name: [plain(value) for value in answer[i]] for name, answer in answers.items()},
        }
        for i in chosen
    ]
