"""How a training goes, in TensorBoard's files and on the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from tritonpress_generator.training.loop import Progress

_LINE_EVERY_S = 30.0


class Report:
    """Shows how the training goes, in TensorBoard and with a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, board: Path, steps: int, first: int, *, shown: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._shown = shown
        if shown:
            _wait_for_a_later_name(board)
        # What a killed run has written of steps that are computed again is not shown twice.
        self._board = SummaryWriter(str(board), purge_step=first + 1) if shown else None
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps, initial=first, desc="training", unit="step", leave=False, disable=None if shown else True
        )
        self._steps, self._first = steps, first
        self._began = self._said = time.monotonic()

    def step(self, progress: Progress, rate: float) -> None:
        self._draw(progress.step, {"train/loss": progress.losses[-1], "train/learning_rate": rate})
        recent = progress.losses[-100:]
        loss = sum(recent) / len(recent)
        self._bar.update()
        self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        now = time.monotonic()
        if self._shown and not self._terminal and now - self._said > _LINE_EVERY_S:
            self._said = now
            left = (now - self._began) / (progress.step - self._first) * (self._steps - progress.step)
            self._line(f"step {progress.step} of {self._steps}, loss {loss:.4f}, {left / 60:.0f} min left")

    def evaluated(self, progress: Progress, metrics: dict[str, float]) -> None:
        self._draw(progress.step, {f"validation/{name}": value for name, value in metrics.items()})
        figures = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        best = "  (the best yet)" if progress.worse == 0 else ""
        if self._shown:
            self._line(f"step {progress.step} of {self._steps}, validation: {figures}{best}")

    def _line(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def _draw(self, step: int, values: Mapping[str, float]) -> None:
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        self._bar.close()
        if self._board is not None:
            self._board.close()


def _wait_for_a_later_name(board: Path) -> None:
    """Waits until a file that is begun in `board` has a name behind those that are there, in TensorBoard's order.

    It reads the files of a folder by their names, which begin with the second in which they were made; of one second,
    a process's hundredth is before its ninety-ninth, and a run that goes on is taken for one that came before.
    """
    seconds = [int(file.name.split(".")[3]) for file in board.glob("events.out.tfevents.[0-9]*.*")]
    # A clock that was set back is not waited for.
    if seconds and 0 <= (left := max(seconds) + 1 - time.time()) <= 1:
        time.sleep(left)
