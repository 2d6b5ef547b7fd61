"""The search itself: estimates first, then measurements of fewer and fewer candidates, within a budget of time.

Source of the rounds: Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter
Optimization" (successive halving): of each round's candidates the better half goes on to what costs more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from tritonpress_generator.errors import GateError, InputError
from tritonpress_generator.journal import Journal
from tritonpress_generator.progress import Progress
from tritonpress_generator.search import relaxing
from tritonpress_generator.search.budget import Budget, minutes
from tritonpress_generator.search.estimate import Estimator
from tritonpress_generator.search.measure import GRAPH, Workshop
from tritonpress_generator.search.sampler import propose
from tritonpress_generator.search.settings import Config
from tritonpress_generator.search.space import Candidate, Space
from tritonpress_generator.search.trials import Trial, attempted, best, front_of, likely, said

_REFERENCE = "reference"
_REMEDY = "let the space have milder candidates"
"""Where what could not be built says nothing better."""


class Loop:
    """Tries candidates until the time or the space is used up.

    Whatever was computed before is taken from the journal, so that a search that was killed does the same again up to
    where it was.
    """

    def __init__(
        self,
        workshop: Workshop,
        space: Space,
        config: Config,
        *,
        estimator: Estimator,
        journal: Journal,
        budget: Budget,
        floor: float,
        say: Progress,
    ) -> None:
        """Takes what is searched; `floor` is the least metric on the held-out examples."""
        self._workshop, self._space, self._config = workshop, space, config
        self._estimator, self._journal, self._say = estimator, journal, say
        self.budget, self.floor = budget, floor
        self._seen: set[str] = set()
        self._first: dict[str, Trial] = {}
        self._gone_on: set[str] = {space.reference.key}
        """Those of a first trial that were scored in full, or a training of them was."""
        self.full: dict[str, Trial] = {}
        """What was scored on all held-out examples, by key."""
        self.refused: dict[str, str] = {}
        """Why others could not be made, or not be trained or built in the time, by label."""
        self.gone: dict[str, GateError] = {}
        """Those that the gate has refused, and why, by key."""
        self.passed: dict[str, dict[str, Any]] = {}
        """What was found of those that were built and have passed the gate, by key."""
        self.unbuilt: set[str] = set()
        """Keys of those of the front for whose builds there was no time."""

    def begin(self) -> Trial:
        """Returns the trial of the model as it is, against which all others are timed.

        The model as it is in each other precision is tried too: by it is known what a multiplication costs there.

        Raises:
            InputError: It cannot be made, or the budget is too short for one candidate.
        """
        candidate = self._space.reference
        reference = self._judged(candidate)
        if reference is None:
            raise InputError(
                f"search: the model as it is must become an engine: {self.refused[self._space.label(candidate)]}"
            )
        self.budget.check(reference)
        self._whole = reference.score
        self._seen.add(candidate.key)
        self._first[candidate.key] = reference
        self.budget.learn(reference)
        if reference.score >= self.floor:
            # At once, since by it is known how long the builds at the end take.
            self.gate(candidate)
            self.budget.check(reference)
        for graph in self._space.dimensions["graph"][1:]:
            other = replace(candidate, graph=graph)
            self._seen.add(other.key)
            self._tried(other)
        return reference

    def run(self) -> None:
        """Tries rounds of candidates until the time, the trials or the space are used up."""
        number = 0
        while not self.over() and not self._enough():
            number += 1
            going_on = self._round(number)
            if going_on is None:
                return
            self._gone_on |= {candidate.key for candidate in going_on}
            if self._space.epochs:
                short = [self._judged(self._space.trained(candidate, first=True)) for candidate in going_on]
                going_on = [t.candidate for t in self._better_half([trial for trial in short if trial is not None])]
            for candidate in going_on:
                self.settle(self._space.trained(candidate, first=False))
            kept = {trial.candidate.key for trial in self.front()}
            self._workshop.throw_away({self._space.reference.key, *kept})

    def _round(self, number: int) -> list[Candidate] | None:
        """Returns the better half of new candidates; where there are none, the best that was left behind, or None."""
        seed = self._config.seed * 10_007 + number
        known = [(t.candidate, t.score, t.cost(self._config.objective)) for t in self._first.values()]
        proposed = propose(self._space, known, self._seen, self._config.proposals, seed=seed)
        if proposed:
            self._seen |= {candidate.key for candidate in proposed}
            chosen = likely(proposed, [*self._first.values()], self._estimator, self._config.objective)
            made = [trial for candidate in chosen if (trial := self._tried(candidate)) is not None]
            return [trial.candidate for trial in self._better_half(made)]
        behind = [trial for trial in self._first.values() if trial.candidate.key not in self._gone_on]
        return [trial.candidate for trial in best(behind, 1, self._config.objective)] or None

    def gate(self, candidate: Candidate) -> None:
        """Builds a candidate and asks the gate; one that it refuses leaves the front, and milder ones are tried."""
        result = self._found("build", candidate, lambda: self._workshop.built(candidate))
        self.budget.learn_build(candidate, result["seconds"])
        if "build" in result:
            self.passed[candidate.key] = result
        else:
            reason = self.refused[self._space.label(candidate)] = result.get("gate") or result["refused"]
            self.gone[candidate.key] = GateError(
                f"{self._space.label(candidate)}: {reason}", result.get("remedy", _REMEDY)
            )
            self.settle(self.relaxed(self.full.pop(candidate.key), blamed=result.get("stage", "")))

    def gate_front(self) -> list[Trial]:
        """Returns the front of what has passed the gate, which each point is asked of that there is time to build.

        Where nothing has passed, one is built in any case: the time for it was kept.
        """
        in_any_case = not self.passed
        while pending := [t for t in self.front() if t.candidate.key not in {*self.passed, *self.unbuilt}]:
            candidate = pending[0].candidate
            if in_any_case or self._is_known("build", candidate) or self._has_time("build", candidate):
                self.gate(candidate)
            else:
                self.unbuilt.add(candidate.key)
            in_any_case = False
        passed = [trial for trial in self.passing() if trial.candidate.key in self.passed]
        return front_of(passed, self._config.objective)

    def settle(self, candidate: Candidate | None) -> None:
        """Judges a candidate, and milder ones in its place until one keeps the metric or there is no time."""
        while candidate is not None:
            trial = self._judged(candidate)
            if trial is None or trial.score >= self.floor:
                return
            candidate = self.relaxed(trial)

    def relaxed(self, trial: Trial, *, blamed: str = "") -> Candidate | None:
        """Returns the candidate with less of what cost the most; None if there is none that was not judged yet.

        Args:
            trial: Of the candidate.
            blamed: The pass that has broken the gate, where the gate has said so.
        """
        reached = (self._whole, self.floor)
        for milder in relaxing.milder(trial, self._space, self._estimator, self._of_higher_precision, reached, blamed):
            if milder.key not in {*self.full, *self.gone}:
                return milder
        return None

    def passing(self) -> list[Trial]:
        """Returns the trials that keep the metric."""
        return [trial for trial in self.full.values() if trial.score >= self.floor]

    def front(self) -> list[Trial]:
        """Returns those of them that no other is better than; the objective's best first."""
        return front_of(self.passing(), self._config.objective)

    def label(self, trial: Trial) -> str:
        """Returns what a trial's candidate is, in few words."""
        return self._space.label(trial.candidate)

    def over(self) -> bool:
        """Says whether the time is used up."""
        return self._left_s() <= 0

    def _left_s(self) -> float:
        """Returns the time that is left besides the end: the builds of the front, its times, its best once more.

        What is tried now may be another point of it.
        """
        points = self.front()
        unbuilt = [trial for trial in points if trial.candidate.key not in self.passed]
        return self.budget.left_s(len(unbuilt) + 2) - self._workshop.front_s(len(points) + 1)

    def _known(self, kind: str, candidate: Candidate, compute: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Returns a result that is known, or computes it; None if there is no time left."""
        possible = self._is_known(kind, candidate) or self._has_time(kind, candidate)
        return self._found(kind, candidate, compute) if possible else None

    def _is_known(self, kind: str, candidate: Candidate) -> bool:
        return self._journal.get(f"{kind} {candidate.key}") is not None

    def _found(self, kind: str, candidate: Candidate, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns a result that is known, or computes it."""
        key = f"{kind} {candidate.key}"
        result = self._journal.get(key)
        if result is None:
            self._say.stage(f"[{self.budget.label}] {kind}: {self._space.label(candidate)}")
            result = attempted(compute)
            self._journal.put(key, {"kind": kind, "candidate": asdict(candidate)}, result)
            self._say.found(said(result))
        if "refused" in result:
            self.refused[self._space.label(candidate)] = result["refused"]
        return result

    def _has_time(self, kind: str, candidate: Candidate) -> bool:
        """Says whether there is time for a candidate; notes a training or a build for which there is none."""
        if kind == "build":
            # The best is built once more, and what has passed is timed in turn with the reference.
            expected_s = self.budget.build_s()
            left_s = self.budget.left_s(1) - self._workshop.front_s(len(self.passed) + 1)
        else:
            expected_s, left_s = self.budget.expected_s(candidate), self._left_s()
        if left_s > expected_s:
            return True
        if kind == "build" or (kind == "score" and candidate.epochs):
            done, left = "built" if kind == "build" else "trained", minutes(max(0.0, left_s))
            why = f"not {done}: takes about {minutes(expected_s)} min, {left} are left of the budget"
            self.refused[self._space.label(candidate)] = why
            self._say.stage(f"[{self.budget.label}] {kind}: {self._space.label(candidate)}")
            self._say.found(why)
        return False

    def _tried(self, candidate: Candidate) -> Trial | None:
        """Returns the trial on a few examples."""
        if self._enough():
            return None

        def compute() -> dict[str, Any]:
            made = self._workshop.made(candidate)
            return self._timed(candidate, made.stages[GRAPH])

        trial = self._trial(candidate, self._known("trial", candidate, compute))
        if trial is not None:
            self._first[candidate.key] = trial
            self.budget.learn(trial)
        return trial

    def _judged(self, candidate: Candidate) -> Trial | None:
        """Returns the trial on all held-out examples."""

        def compute() -> dict[str, Any]:
            return self._timed(candidate, self._workshop.score(candidate))

        # The model as it is, however little time there is.
        look = self._found if candidate == self._space.reference else self._known
        trial = self._trial(candidate, look("score", candidate, compute))
        if trial is not None:
            self.full[candidate.key] = trial
            if candidate.epochs:
                self.budget.learn(trial)
        return trial

    def _timed(self, candidate: Candidate, score: float) -> dict[str, Any]:
        """Returns what is measured of a candidate in turn with the reference and the best so far."""
        made = self._workshop.made(candidate)
        result = {"score": score, "stages": made.stages, "size_bytes": made.size_bytes, "trained_s": made.trained_s}
        if candidate == self._space.reference:
            return result | {"throughput": 1.0, "latency": 1.0}
        others = {_REFERENCE: self._space.reference}
        if ahead := self.front():
            others["best"] = ahead[0].candidate
        rounds = self._workshop.timed({"": candidate} | others)
        if "best" in rounds:
            result["to_best"] = asdict(rounds[""].to(rounds["best"]))
        return result | asdict(rounds[""].to(rounds[_REFERENCE]))

    def _trial(self, candidate: Candidate, result: dict[str, Any] | None) -> Trial | None:
        if result is None or "refused" in result:
            return None
        return Trial(candidate, **{name: value for name, value in result.items() if name != "to_best"})

    def _enough(self) -> bool:
        """Says whether as many candidates were built as may be."""
        return self._config.trials is not None and len(self._first) > self._config.trials

    def _better_half(self, trials: Sequence[Trial]) -> list[Trial]:
        return best(trials, (len(trials) + 1) // 2, self._config.objective)

    def _of_higher_precision(self, candidate: Candidate) -> Candidate | None:
        """Returns the candidate with one more layer left out of its precision."""
        if not self._space.quantized(candidate):
            return None
        compute = lambda: {"layer": self._workshop.most_sensitive(candidate)}  # noqa: E731
        layer = (self._known("sensitivity", candidate, compute) or {}).get("layer")
        return None if layer is None else replace(candidate, excluded=tuple(sorted((*candidate.excluded, layer))))
