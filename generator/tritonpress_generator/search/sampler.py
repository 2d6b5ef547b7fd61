"""Proposes candidates from what is known of others, by Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from tritonpress_generator.search.space import Candidate, Space

_ORDERED = ("layers", "heads", "ffn", "flops")
_STARTUP = 8
"""How many results there are before they say where to look."""
_TRIES = 6
"""How many proposals are drawn for each that is wanted: of few candidates, most are soon known."""

_SEEDS = 1 << 32
"""Optuna gives the seed to NumPy, which takes no larger one."""


def propose(
    space: Space, known: Sequence[tuple[Candidate, float, float]], seen: Collection[str], count: int, *, seed: int
) -> list[Candidate]:
    """Returns at most `count` candidates that were not seen; fewer if there are no more.

    It depends on the arguments alone, so that a search that was killed is proposed the same again.

    Args:
        space: Of which they are.
        known: Candidates, with their metric, of which more is better, and their cost, of which less is.
        seen: The keys of all that were proposed.
        count: How many are wanted.
        seed: Another one for each call.

    Source: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization"; for several objectives: Ozaki et al.
    2022, "Multiobjective Tree-Structured Parzen Estimator".
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed % _SEEDS, n_startup_trials=_STARTUP)
    study = optuna.create_study(sampler=sampler, directions=["maximize", "minimize"])
    distributions: dict[str, BaseDistribution] = {
        name: IntDistribution(0, len(values) - 1) if name in _ORDERED else CategoricalDistribution(range(len(values)))
        for name, values in space.dimensions.items()
    }
    for candidate, metric, cost in known:
        if (places := space.places(candidate)) is not None:
            study.add_trial(
                optuna.trial.create_trial(params=places, distributions=distributions, values=[metric, cost])
            )
    found: dict[str, Candidate] = {}
    for _ in range(_TRIES * count):
        candidate = space.at(study.ask(distributions).params)
        if candidate.key not in seen:
            found.setdefault(candidate.key, candidate)
        if len(found) == count:
            break
    if len(found) < count:
        rest = [candidate for candidate in space.all() if candidate.key not in seen and candidate.key not in found]
        random.Random(seed).shuffle(rest)
        found |= {candidate.key: candidate for candidate in rest[: count - len(found)]}
    return list(found.values())
