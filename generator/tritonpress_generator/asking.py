"""Texts to a live endpoint, in requests that it takes: for `verify` and `evaluate`."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm
from tritonpress_client import Connection, InvalidInputError

from tritonpress_generator.answering import Answers, Texts, columns


def ask(connection: Connection, model: str, texts: Texts, *, batch: int) -> Answers:
    """Returns what `model` answers to `texts`, at most `batch` in a request, and no more than it takes.

    Raises:
        TritonpressError: The server is not there, or refuses a text.
    """
    batch = max(1, min(batch, connection.model_config(model).max_batch_size))
    count = len(next(iter(texts.values())))
    parts = [
        together(connection, model, {name: column[start : start + batch] for name, column in texts.items()})
        for start in tqdm(range(0, count, batch), desc="asking", unit="request", leave=False, disable=None)
    ]
    return _joined(parts)


def together(connection: Connection, model: str, texts: Texts) -> Answers:
    """Returns the answers to one request; of one that is refused those to its halves, which may be too much together.

    The most tokens of a request, which packed lengths have, no config says.

    Raises:
        TritonpressError: As `ask`.
    """
    try:
        return connection.infer(
            model, {name: np.array(column, np.object_)[:, None] for name, column in columns(texts).items()}
        )
    except InvalidInputError:
        half = len(next(iter(texts.values()))) // 2
        if not half:
            raise
        halves = (slice(half), slice(half, None))
        return _joined([together(connection, model, {n: c[part] for n, c in texts.items()}) for part in halves])


def _joined(parts: list[Answers]) -> Answers:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
