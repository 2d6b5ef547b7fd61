"""Says what a long command is doing: on a terminal one line that is overwritten, elsewhere a plain line a stage."""

from __future__ import annotations

import sys
import time


class Progress:
    """Prints to standard error, so that standard output stays the result."""

    def __init__(self, *, shown: bool = True) -> None:
        self._start = time.monotonic()
        self._stage: str | None = None
        self._began = self._start
        self._shown = shown
        self._terminal = sys.stderr.isatty()

    def stage(self, name: str) -> None:
        """Ends the running stage and begins the next."""
        self._finish()
        self._stage, self._began = name, time.monotonic()
        if self._terminal and self._shown:
            print(f"\r\033[K… {name}", end="", file=sys.stderr, flush=True)

    def found(self, what: str) -> None:
        """Adds to the running stage's line what it has found."""
        if self._stage is not None:
            self._stage += f": {what}"

    def pause(self) -> None:
        """Says the running stage in a line of its own, and leaves the terminal to what says more of it."""
        if self._stage is not None and self._shown:
            print(f"{chr(13)}{chr(27)}[K{self._stage}" if self._terminal else self._stage, file=sys.stderr, flush=True)

    def done(self) -> None:
        """Ends the last stage."""
        self._finish()
        self._stage = None

    def _finish(self) -> None:
        if self._stage is not None and self._shown:
            lead = "\r\033[K✓ " if self._terminal else ""
            print(f"{lead}{self._stage}  {time.monotonic() - self._began:.1f} s", file=sys.stderr, flush=True)
