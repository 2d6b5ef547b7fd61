"""What several processes recorded of one stage, as one: sums and merged histograms."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram

from tritonpress_loadtests import histograms
from tritonpress_loadtests.histograms import Counts


@dataclass(frozen=True)
class Measured:
    """A stage as it was recorded; windows are of one width, the last may be shorter."""

    window_s: float
    duration_s: float
    windows: dict[int, list[HdrHistogram]]
    """By window, a histogram a model."""
    words_up_to: Counter[tuple[int, int]]
    """Answers of the whole stage by a model's place and its queries' `length_class`."""
    alone: dict[tuple[int, int], HdrHistogram]
    """By the same, those to queries that were sent while none to that model was in flight."""
    answered: Counter[int]
    """Answers by the window in which they came, within the stage."""
    failed: Counter[tuple[int, int]]
    """Failures by the window in which their request was due, and the model's place."""
    errors: dict[str, Counter[str]]
    in_time: list[int]
    """By model, the requests that were answered within the stage's duration."""
    late: int
    limit_hits: int
    most_in_flight: int
    due: int
    """Requests that a schedule had; 0 of a closed loop."""
    gave_up_after_s: float | None
    """When the generator, too late by its own fault, sent no more; None if it did send all."""
    began_late_s: float
    """By how much the last process began after its moment; 0 of a schedule, whose requests are late each."""
    start_lag: HdrHistogram
    loop_lag: HdrHistogram
    cpu_shares: list[float]
    """By process."""
    rss_bytes: list[int]

    def histogram(self, place: int | None = None, first: int = 0, last: int | None = None) -> HdrHistogram:
        """Returns the latencies of a model (or of all) that were due in the windows `first` to before `last`."""
        total = histograms.new()
        for number, models in self.windows.items():
            if first <= number and (last is None or number < last):
                for which, histogram in enumerate(models):
                    if place in (None, which):
                        total.add(histogram)
        return total

    def counts(self, place: int | None = None, first: int = 0, last: int | None = None) -> Counts:
        """Returns the same as values in µs and counts."""
        return histograms.counts(self.histogram(place, first, last))

    def failures(self, place: int | None = None, first: int = 0, last: int | None = None) -> int:
        """Returns how many requests to a model (or all) failed that were due in windows `first` to before `last`."""
        return sum(
            count
            for (number, which), count in self.failed.items()
            if first <= number and (last is None or number < last) and place in (None, which)
        )

    @property
    def whole_windows(self) -> int:
        """How many windows lie within the duration."""
        return max(1, int(self.duration_s / self.window_s + 1e-6))


def merge(events: list[dict[str, Any]], models: list[str]) -> Measured:
    """Returns the processes' `stage` events (see `Recorder.state`) as one."""
    windows: dict[int, list[HdrHistogram]] = {}
    words_up_to: Counter[tuple[int, int]] = Counter()
    alone: dict[tuple[int, int], HdrHistogram] = {}
    errors: dict[str, Counter[str]] = {model: Counter() for model in models}
    answered: Counter[int] = Counter()
    failed: Counter[tuple[int, int]] = Counter()
    for event in events:
        for key, packed in event["histograms"].items():
            number, place = _pair(key)
            of_models = windows.setdefault(number, [histograms.new() for _ in models])
            of_models[place].add(histograms.merged(packed))
        words_up_to.update({_pair(key): count for key, count in event["words_up_to"].items()})
        for key, text in event["alone"].items():
            alone.setdefault(_pair(key), histograms.new()).add(histograms.merged([text]))
        for model, messages in event["errors"].items():
            errors[model].update(messages)
        answered.update({int(window): count for window, count in event["answered"].items()})
        failed.update({_pair(key): count for key, count in event["failed"].items()})
    duration_s = max(event["duration_s"] for event in events)
    return Measured(
        window_s=events[0]["window_s"],
        duration_s=duration_s,
        windows=dict(sorted(windows.items())),
        words_up_to=words_up_to,
        alone=alone,
        answered=answered,
        failed=failed,
        errors=errors,
        in_time=np.sum([event["in_time"] for event in events], axis=0).tolist(),
        late=sum(event["late"] for event in events),
        limit_hits=sum(event["limit_hits"] for event in events),
        most_in_flight=sum(event["most_in_flight"] for event in events),
        due=sum(event.get("due", 0) for event in events),
        gave_up_after_s=max(filter(None, (event.get("gave_up_after_s") for event in events)), default=None),
        began_late_s=max(event.get("began_late_s", 0.0) for event in events),
        start_lag=histograms.merged(event["start_lag"] for event in events),
        loop_lag=histograms.merged(event["loop_lag"] for event in events),
        cpu_shares=[event["cpu_share"] for event in events],
        rss_bytes=[event["rss_bytes"] for event in events],
    )


def _pair(key: str) -> tuple[int, int]:
    first, second = map(int, key.split())
    return first, second
