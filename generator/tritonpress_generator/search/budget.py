"""The time of a search: what is spent, what is left, and how long what comes next will take."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from statistics import median

from tritonpress_generator.errors import InputError
from tritonpress_generator.journal import Journal
from tritonpress_generator.search.space import Candidate, Space
from tritonpress_generator.search.trials import Trial


class Budget:
    """Learns from the candidates that were measured how long others take."""

    def __init__(
        self, minutes: float, space: Space, journal: Journal, *, began: float, training_s: Callable[[float], float]
    ) -> None:
        """Takes what there is.

        Args:
            minutes: For all of the search.
            space: The candidates.
            journal: Knows how long it took to find what is known.
            began: When the search began, by `time.monotonic`. What comes before the first candidate counts; a search
                that goes on does it anew, and counts it once.
            training_s: Says how many seconds so many epochs of the distillation take, before any were computed.
        """
        self._minutes, self._space, self._journal = minutes, space, journal
        self._began, self._training_s = began, training_s
        self._untrained: list[float] = []
        """How long candidates took that are not trained: the model as it is first."""
        self._build_s: float | None = None
        self._trained: dict[str, float] = {}
        """How often as long as expected trainings took, by the passes that they are of."""

    @property
    def spent_s(self) -> float:
        """The time of this search so far, that of a killed one included."""
        return time.monotonic() - self._began + self._journal.replayed_s

    @property
    def label(self) -> str:
        """What is spent, in few words."""
        return f"{self.spent_s / 60:.1f} of {self._minutes:g} min"

    def check(self, reference: Trial) -> None:
        """Refuses a budget that is too short for one candidate, its first distillation included.

        Args:
            reference: The trial of the model as it is.

        Raises:
            InputError: It is too short.
        """
        epochs = self._space.first_epochs
        training_s = self._training_s(epochs)
        # Another candidate takes as long as this one, and is built twice.
        build_s = reference.seconds if self._build_s is None else self._build_s
        needed_s = self.spent_s + reference.seconds + 2 * build_s + training_s
        if needed_s > self._minutes * 60:
            of_it = f" ({minutes(training_s)} of it to distil for {epochs:g} epochs)" if epochs else ""
            remedy = ", or lower passes.distill.samples or epochs" if epochs else ""
            raise InputError(
                f"{self._space.recipe.path}: search.budget_minutes must be at least {minutes(needed_s)} for one "
                f"candidate on this machine{of_it}, got {self._minutes:g}; raise it{remedy}"
            )

    def learn(self, trial: Trial) -> None:
        """Takes a trial; of those with the same passes only the first has trained."""
        if not trial.candidate.epochs:
            self._untrained.append(trial.seconds)
        elif (passes := self._passes(trial.candidate)) not in self._trained:
            # One that an earlier search has trained is only looked up, and one that was killed only goes on.
            training_s = max(trial.trained_s, trial.seconds - self._untrained_s())
            self._trained[passes] = training_s / self._training_s(trial.candidate.epochs)

    def learn_build(self, candidate: Candidate, seconds: float) -> None:
        """Takes how long a build took; of the model as it is, which has no passes, it says how long others take."""
        if candidate.key == self._space.reference.key:
            self._build_s = seconds

    def expected_s(self, candidate: Candidate) -> float:
        """Returns how long a candidate takes: as others, and if it must be trained, as by a few steps and by others."""
        if not candidate.epochs or self._passes(candidate) in self._trained:
            return self._untrained_s()
        times = median(self._trained.values()) if self._trained else 1.0
        return self._untrained_s() + self._training_s(candidate.epochs) * times

    def left_s(self, builds: int) -> float:
        """Returns the time that is left besides so many builds."""
        return self._minutes * 60 - self.spent_s - builds * self.build_s()

    def build_s(self) -> float:
        """Returns how long a build takes, as that of the model as it is and as passes take; trainings are done."""
        if self._build_s is None:
            return self._untrained_s()
        passes_s = max(0.0, self._untrained_s() - self._untrained[0]) if self._untrained else 0.0
        return self._build_s + passes_s

    def _untrained_s(self) -> float:
        return median(self._untrained or [0.0])

    def _passes(self, candidate: Candidate) -> str:
        return json.dumps(self._space.passes(candidate))


def minutes(seconds: float) -> str:
    """Returns whole hundredths of a minute, none too few."""
    return f"{math.ceil(seconds / 0.6) / 100:.2f}"
