"""What requests take by themselves: how long texts differ from short ones, and those of one length from each other.

It shows in the latency of a request that was sent while its model had no other in flight. Such are few where texts are
long, and the longest are more or fewer among them by chance; so they are divided into classes of like length, and each
counts as often as the scenario asks it (poststratification).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonpress_loadtests import histograms
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.histograms import Counts
from tritonpress_loadtests.simulator import Floats

_LEAST_SHARE = 0.02  # of the mean: even the quickest takes some of its execution
_ENOUGH = 2000  # answers of a class; more only bring in stages in which the machine does much else
_UNSEEN = 0.001  # of a model's requests


@dataclass(frozen=True)
class OwnTimes:
    """The distribution of the time that a request takes of an execution by itself."""

    times_s: Floats
    """Ascending."""
    chances: Floats
    """Of each of the times; they add up to 1."""
    counts: npt.NDArray[np.int64]
    """How many answers took each of the times."""
    classes: npt.NDArray[np.int64]
    """The class of lengths of each of the times."""
    unseen: float
    """The share of requests of which nothing is known, since none of their length was alone; they are left out."""
    longer: float
    """How many times longer the requests are that the scenario asks for than those that the stages had by chance."""

    @property
    def mean_s(self) -> float:
        """The mean of the times."""
        return float(self.times_s @ self.chances)

    def draw(self, count: int, seed: int) -> Floats:
        """Returns that many requests' times in s."""
        drawn: Floats = np.random.default_rng(seed).choice(self.times_s, count, p=self.chances)
        return drawn

    def draw_of(self, classes: npt.NDArray[np.int64], seed: int) -> Floats:
        """Returns the times in s of requests of these classes; of a class that was never seen, as of any."""
        drawn = self.draw(len(classes), seed)
        for up_to in np.unique(classes):
            own = self.classes == up_to
            if own.any():
                chances = self.chances[own] / self.chances[own].sum()
                asked = classes == up_to
                drawn[asked] = np.random.default_rng([seed, int(up_to)]).choice(
                    self.times_s[own], asked.sum(), p=chances
                )
        return drawn

    def answers_beyond(self, quantile: float) -> int:
        """Returns how many answers lie beyond that quantile of the distribution."""
        reached = np.cumsum(self.chances)
        place = min(int(np.searchsorted(reached, quantile - 1e-9)), len(reached) - 1)
        # Answers of one time are in part before the quantile.
        own = self.counts[place] * (reached[place] - quantile) / self.chances[place]
        return int(own + 1e-6) + int(self.counts[place + 1 :].sum())


def own_times(
    asked: str, stages: Sequence[Mapping[str, Any]], words_up_to: Mapping[str, float], elsewhere_s: float
) -> OwnTimes:
    """Returns what requests to a model take by themselves.

    Args:
        asked: The model.
        stages: Of the results, those in which it answered, the lightest first; each class is of the first that have
            enough of it. Behind the lightest, stages of several processes are left out: each process knows only its
            own requests.
        words_up_to: How likely a query is of each class.
        elsewhere_s: What of the latency of a request that is alone is not its execution.

    Raises:
        ScenarioError: Queries of a class come, and none was answered while no other was in flight.
    """
    single = [stage for place, stage in enumerate(stages) if not place or stage["generator"]["processes"] == 1]
    found: dict[str, Counts] = {}
    unseen = 0.0
    for up_to, share in words_up_to.items():
        values, counts = _alone(asked, single, up_to)
        if len(values):
            mean_s = histograms.mean((values, counts)) / 1e6
            found[up_to] = np.maximum(values / 1e6 - elsewhere_s, _LEAST_SHARE * mean_s), counts
            continue
        unseen += share
        if unseen > _UNSEEN:
            raise ScenarioError(
                f"no query to {asked} of {int(up_to) // 2 + 1} to {up_to} words was answered while no other was in"
                f" flight, and {share:.1%} are: what they take is not known; run the lightest stage longer"
            )
    times_s = np.concatenate([own_s for own_s, _ in found.values()])
    counts = np.concatenate([counts for _, counts in found.values()])
    chances = np.concatenate([words_up_to[up_to] * part / part.sum() for up_to, (_, part) in found.items()])
    classes = np.concatenate([np.full(len(part), int(up_to)) for up_to, (part, _) in found.items()])
    order = np.argsort(times_s)
    longer = _longer(asked, stages, words_up_to, found)
    return OwnTimes(times_s[order], chances[order] / chances.sum(), counts[order], classes[order], unseen, longer)


def _longer(
    asked: str, stages: Sequence[Mapping[str, Any]], words_up_to: Mapping[str, float], found: Mapping[str, Counts]
) -> float:
    """Returns the mean time of a request as they are asked over that of the requests of the stages."""
    means_s = np.array([histograms.mean(recorded) for recorded in found.values()])
    shares = np.array([words_up_to[up_to] for up_to in found])
    had = np.array([sum(stage["by_model"][asked]["words_up_to"].get(up_to, 0) for stage in stages) for up_to in found])
    return float((shares @ means_s / shares.sum()) / (had @ means_s / had.sum()))


def _alone(asked: str, stages: Sequence[Mapping[str, Any]], up_to: str) -> Counts:
    """Returns the latencies of requests of a class that were alone, of the lightest stages that have enough."""
    total = histograms.new()
    for stage in stages:
        if text := stage["by_model"][asked]["alone"].get(up_to):
            total.add(histograms.merged([text]))
        if total.get_total_count() >= _ENOUGH:
            break
    return histograms.counts(total)
