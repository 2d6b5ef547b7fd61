"""What became of a stage's requests, by windows of time: memory grows with the number of windows, not of requests."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from hdrh.histogram import HdrHistogram

from tritonpress_loadtests import histograms

_MOST_MESSAGES = 20
_MOST_WINDOWS = 240
_WINDOWS_A_PIECE = 4
_LATE_S = 0.001


def window_s(duration_s: float, piece_s: float | None = None) -> float:
    """Returns the width of a stage's windows: a second, less in a short stage, more in one of many minutes.

    Args:
        duration_s: Of the stage.
        piece_s: Of the shortest part of a stage whose rate changes, which has at least four windows.
    """
    width_s = max(duration_s / _MOST_WINDOWS, min(1.0, max(0.1, duration_s / 20)))
    return width_s if piece_s is None else min(width_s, piece_s / _WINDOWS_A_PIECE)


class Recorder:
    """Records a stage in one process; times are in seconds from the stage's start.

    A request belongs to the window in which it was due (open loop) or sent (closed loop); answers are also counted by
    the window in which they came.
    """

    def __init__(
        self, models: Sequence[str], duration_s: float, timeout_s: float, *, piece_s: float | None = None
    ) -> None:
        self._models = models
        self._window_s = window_s(duration_s, piece_s)
        self._duration_s = duration_s
        self._kept_open = math.ceil(timeout_s / self._window_s) + 1
        self._open: dict[tuple[int, int], HdrHistogram] = {}
        self._up_to: Counter[tuple[int, int]] = Counter()
        self._alone: dict[tuple[int, int], HdrHistogram] = {}
        self._closed: defaultdict[str, list[str]] = defaultdict(list)
        self._newest = 0
        self._answered: Counter[int] = Counter()
        self._failed: Counter[tuple[int, int]] = Counter()
        self._errors: dict[str, Counter[str]] = {model: Counter() for model in models}
        self._recent_us: list[int] = []
        self._start_lag = histograms.new()
        self._loop_lag = histograms.new()
        self.in_time = [0] * len(models)
        self.requests = 0
        self.failures = 0
        self.late = 0
        self.limit_hits = 0

    def answered(self, place: int, up_to: int, at_s: float, end_s: float, *, alone: bool) -> None:
        """Records an answer whose latency runs from `at_s` to `end_s`.

        Args:
            place: Of the model that was asked.
            up_to: The query's `length_class`.
            at_s: When it was due, or sent.
            end_s: When the answer came.
            alone: Whether this process had no other to that model in flight when it was sent.
        """
        window = int(at_s / self._window_s)
        if window > self._newest:
            self._advance(window)
        key = (window, place)
        histogram = self._open.get(key)
        if histogram is None:
            histogram = self._open[key] = histograms.new()
        latency_us = min(max(1, round((end_s - at_s) * 1e6)), histograms.HIGHEST_US)
        histogram.record_value(latency_us)
        self._up_to[place, up_to] += 1
        if alone:
            own = self._alone.get((place, up_to))
            if own is None:
                own = self._alone[place, up_to] = histograms.new()
            own.record_value(latency_us)
        self.requests += 1
        self._recent_us.append(latency_us)
        if end_s <= self._duration_s:
            self.in_time[place] += 1
            self._answered[int(end_s / self._window_s)] += 1

    def failed(self, place: int, at_s: float, message: str) -> None:
        """Records a request without an answer."""
        errors = self._errors[self._models[place]]
        # A message may hold something of the request; what cannot be grouped must not fill the memory.
        errors[message if message in errors or len(errors) < _MOST_MESSAGES else "other"] += 1
        self._failed[int(at_s / self._window_s), place] += 1
        self.requests += 1
        self.failures += 1

    def started(self, lag_s: float) -> None:
        """Records how long after its moment a request was sent."""
        self._start_lag.record_value(max(1, round(lag_s * 1e6)))
        if lag_s > _LATE_S:
            self.late += 1

    def beat(self, lag_s: float) -> None:
        """Records by how much a timer of the generator's loop was late."""
        self._loop_lag.record_value(max(1, round(lag_s * 1e6)))

    def take_recent_p50_ms(self) -> float | None:
        """Returns the median latency since the last call; None if nothing was answered."""
        recent, self._recent_us = sorted(self._recent_us), []
        return recent[len(recent) // 2] / 1e3 if recent else None

    def state(self) -> dict[str, Any]:
        """Returns all of it as plain values; see `tritonpress_loadtests.measured.merge`."""
        self._advance(self._newest + self._kept_open + 1)
        return {
            "window_s": self._window_s,
            "histograms": self._closed,
            "words_up_to": {f"{place} {up_to}": count for (place, up_to), count in self._up_to.items()},
            "alone": {f"{place} {up_to}": histograms.encoded(own) for (place, up_to), own in self._alone.items()},
            "answered": self._answered,
            "failed": {f"{window} {place}": count for (window, place), count in self._failed.items()},
            "errors": self._errors,
            "in_time": self.in_time,
            "late": self.late,
            "limit_hits": self.limit_hits,
            "start_lag": histograms.encoded(self._start_lag),
            "loop_lag": histograms.encoded(self._loop_lag),
        }

    def _advance(self, window: int) -> None:
        """Packs the windows that can hardly change any more; one that does is packed in two parts."""
        self._newest = window
        for key in [key for key in self._open if key[0] < window - self._kept_open]:
            self._closed[f"{key[0]} {key[1]}"].append(histograms.encoded(self._open.pop(key)))
