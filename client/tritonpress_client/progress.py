"""How far a long command is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_WIDTH = 30
_LINE_EVERY_S = 10.0


class ProgressBar:
    """Shows on standard error how many of all are done."""

    def __init__(self, total: int, done: int = 0, *, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._total = total
        self._before = done
        self._started = time.monotonic()
        self._shown = self._started

    def show(self, done: int, failed: int) -> None:
        """Shows it, unless that was done a moment ago."""
        now = time.monotonic()
        if done < self._total and now - self._shown < (0.1 if self._is_terminal else _LINE_EVERY_S):
            return
        self._shown = now
        rate_per_s = (done - self._before) / max(now - self._started, 1e-9)
        words = f"{done}/{self._total}  {rate_per_s:.0f}/s" + (f"  {failed} failed" if failed else "")
        if self._is_terminal:
            filled = _WIDTH * done // max(self._total, 1)
            end = "\n" if done >= self._total else ""
            self._stream.write(f"\r\x1b[K{'█' * filled}{'░' * (_WIDTH - filled)}  {words}{end}")
        else:
            self._stream.write(f"{words}\n")
        self._stream.flush()
