"""How far a plan's answers are from what ONNX Runtime's CPU provider gives, and how far they may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
OF_TOKENS = ("start", "end")
"""The outputs of the random encoders (`prepare.random_encoder`)."""
BOUNDS = {"fp32": (0.9999, 0.01), "fp16": (0.999, 0.05), "int8": (0.99, 0.15)}
"""By the rung: the least cosine of a sequence's answers, and the largest error of one relative to the largest answer.
FP32's products may be TF32, whose roundings are 2^-11 as FP16's are; FP16 rounds what is between them too. INT8 is held
to the same graph in ONNX Runtime, whose codes differ where FP16 rounds to the other side of a half."""


class ParityError(Exception):
    """Answers are further away than they may be; one line says how far."""


def answers(path: Path, rung: str) -> list[tuple[dict[str, Array], dict[str, Array]]]:
    """Returns what was asked, INT32, and answered (`prepare.shape`)."""
    graph = "int8" if rung == "int8" else "fp32"
    found: dict[str, dict[str, Array]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            shape, of, name = key.split("/")
            if of == graph:
                found.setdefault(shape, {})[name] = arrays[key]
    pairs = []
    for tensors in found.values():
        outputs = {name: tensor for name, tensor in tensors.items() if tensor.dtype == np.float32}
        pairs.append(({n: t.astype(np.int32) for n, t in tensors.items() if n not in outputs}, outputs))
    return pairs


def recorded(path: Path) -> list[tuple[dict[str, Array], dict[str, Array]]]:
    """Returns what a workload was asked and answered (`prepare.Recorded`)."""
    found: dict[int, tuple[dict[str, Array], dict[str, Array]]] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            number, side, name = key.split("/")
            found.setdefault(int(number), ({}, {}))[side == "out"][name] = arrays[key]
    return [found[number] for number in sorted(found)]


def differences(
    run: Callable[[dict[str, Array]], Mapping[str, Array]],
    asked: list[tuple[dict[str, Array], dict[str, Array]]],
    of_tokens: Sequence[str] = OF_TOKENS,
) -> dict[str, float]:
    """Returns the least cosine and the largest relative error of the answers of `run`.

    Args:
        run: Takes a padded batch.
        asked: Batches, with the answers that are expected.
        of_tokens: The outputs of a value a token, of which padding does not count.
    """
    cosines, errors = [1.0], [0.0]
    for feed, expected in asked:
        got = run(feed)
        present = feed["attention_mask"].astype(bool)
        for name, answer in expected.items():
            counts = present if name in of_tokens else np.ones(answer.shape, bool)
            for row, mask in enumerate(counts):
                left, right = answer[row][mask].astype(np.float64), got[name][row][mask].astype(np.float64)
                norms = float(np.linalg.norm(left) * np.linalg.norm(right))
                cosines.append(float(left @ right) / norms if norms else float("nan"))
            largest = float(np.abs(answer[counts]).max())
            errors.append(float(np.abs(got[name] - answer)[counts].max()) / largest)
    # NumPy's extremes, unlike Python's, keep NaN.
    return {"cosine": float(np.min(cosines)), "relative_error": float(np.max(errors))}


def check(rung: str, found: Mapping[str, float]) -> None:
    """Refuses answers outside of the bounds of `rung`.

    Raises:
        ParityError: They are.
    """
    cosine, error = BOUNDS[rung]
    # Written so that NaN fails too.
    if not (found["cosine"] >= cosine and found["relative_error"] <= error):
        raise ParityError(
            f"{rung}: cosine must be at least {cosine} and the relative error at most {error}, got "
            f"{found['cosine']:.5f} and {found['relative_error']:.4f}"
        )
