"""How much may be retried, and how long answers take: what the retry policy knows of the past."""

from __future__ import annotations

import bisect
import threading
from collections import deque


class RetryBudget:
    """A bucket of tokens: each call puts in `ratio`, each retry takes out one; at most `burst` are kept.

    As in gRFC A6's throttling: while most calls succeed there is always a token, and when none do, the retries are at
    most `ratio` of the calls.
    """

    def __init__(self, ratio: float, burst: int) -> None:
        self._ratio = ratio
        self._burst = float(burst)
        self._tokens = float(burst)
        self._lock = threading.Lock()

    def deposit(self) -> None:
        """Counts a call."""
        # A full bucket needs no lock: that is the case of each call while all is well.
        if self._tokens < self._burst:
            with self._lock:
                self._tokens = min(self._burst, self._tokens + self._ratio)

    def withdraw(self) -> bool:
        """Returns whether one more retry may be sent, and counts it."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


class LatencyWindow:
    """The last answers' times, for a percentile of them."""

    _SIZE = 500
    _ENOUGH = 50

    def __init__(self) -> None:
        self._last: deque[float] = deque()
        self._sorted: list[float] = []
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Counts an answer."""
        with self._lock:
            self._last.append(seconds)
            bisect.insort(self._sorted, seconds)
            if len(self._last) > self._SIZE:
                del self._sorted[bisect.bisect_left(self._sorted, self._last.popleft())]

    def p95_s(self) -> float | None:
        """Returns the 95th percentile in seconds; None while too few answers were seen."""
        with self._lock:
            return self._sorted[int(0.95 * len(self._sorted))] if len(self._sorted) >= self._ENOUGH else None
