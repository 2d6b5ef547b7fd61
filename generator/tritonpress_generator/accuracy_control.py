"""Chooses which products of a quantised graph go back to FP32, so that the task's metric is kept.

Products are taken in the order of what the model's answers gain by each of them, one more at a time, until the metric
is what it must be; then those are quantised again that it does not need. Source of the ranking and of the first part:
NNCF's quantisation with accuracy control
(https://docs.openvino.ai/2024/openvino-workflow/model-optimization-guide/quantizing-models-post-training/quantizing-with-accuracy-control.html).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tritonpress_generator.infer import Array, Infer


def fewest(ranked: Sequence[str], reaches: Callable[[Sequence[str]], bool]) -> list[str] | None:
    """Returns the products that go back to FP32, of which none can be left out, or None if nothing may stay quantised.

    Where a product more in FP32 makes the metric worse, as noise may, there can be other choices, but none is taken
    that does not reach.

    Args:
        ranked: All quantised products, what harms most first.
        reaches: Says whether the metric is what it must be with these in FP32; it is not with none of them.
    """
    for count in range(1, len(ranked)):
        if reaches(ranked[:count]):
            break
    else:
        return None
    chosen = list(ranked[:count])
    # Without the last of them it was not reached.
    for name in ranked[: count - 1][::-1]:
        fewer = [other for other in chosen if other != name]
        if reaches(fewer):
            chosen = fewer
    return chosen


def ranked(
    names: Sequence[str], without: Callable[[str], Infer], fp32: Infer, samples: Sequence[Mapping[str, Array]]
) -> list[str]:
    """Returns `names` by the error that is left in the answers where one of them is in FP32, the least first.

    Args:
        names: The quantised products.
        without: Gives the model with one of them in FP32.
        fp32: The model in FP32.
        samples: What they are asked.
    """
    expected = [fp32(feed) for feed in samples]
    left = {}
    for name in names:
        infer = without(name)
        left[name] = float(
            np.mean([_error(infer(feed), answer) for feed, answer in zip(samples, expected, strict=True)])
        )
    return sorted(names, key=left.__getitem__)


def _error(answer: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """Returns the mean over the outputs of the squared error, as a share of the squared answer."""
    shares = []
    for name, exact in expected.items():
        norm = float(np.square(exact).sum())
        error = float(np.square(answer[name] - exact).sum())
        shares.append(error / norm if norm else error)
    return float(np.mean(shares))
