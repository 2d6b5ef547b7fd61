"""An artefact's metrics on labelled examples, and what they would have been on others drawn like them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Scorer = Callable[[NDArray[np.int64]], dict[str, float]]
"""The metrics on those examples that it is given the indices of; an index may occur several times."""
AGREEMENT = "agreement"
"""The metric that needs no labels: how far answers are those of the FP32 baseline, 1 where they are the same."""
RESAMPLES = 1000


@dataclass(frozen=True)
class Scores:
    """What an artefact's answers score."""

    scorer: Scorer
    examples: int
    """How many there are."""
    most: float = 1.0
    """What an example scores at most by the task's metrics."""

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The metrics on all examples."""
        return self.scorer(np.arange(self.examples))

    @cached_property
    def draws(self) -> dict[str, NDArray[np.float64]]:
        """Each metric on `RESAMPLES` draws of as many examples with replacement, `(RESAMPLES,)`.

        The draws are the same for all artefacts that answer the same number of examples, so that their differences are
        paired (Efron 1979; for comparing systems on one test set: Koehn 2004).
        """
        generator = np.random.default_rng(0)
        drawn = [self.scorer(generator.integers(self.examples, size=self.examples)) for _ in range(RESAMPLES)]
        return {name: np.array([one[name] for one in drawn]) for name in drawn[0]}


def means(values: Mapping[str, NDArray[np.float64]]) -> Scorer:
    """Returns the metrics that are means over examples, from each example's value, `(examples,)`."""
    return lambda rows: {name: float(of_examples[rows].mean()) for name, of_examples in values.items()}
