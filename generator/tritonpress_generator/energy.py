"""Energy that the processors have taken, by the counters that Linux shows: RAPL's, under `/sys/class/powercap`.

Each package (socket) has a counter in microjoules that begins anew after `max_energy_range_uj`, on a busy server after
some minutes; memory, where it is counted apart (`dram`), is none of the package's. The counters are the machine's: what
else runs is in them. Source: https://docs.kernel.org/power/powercap/powercap.html. A GPU has a counter of its own
(`nvml.py`), which is read where it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tritonpress_generator import nvml

ROOT = Path("/sys/class/powercap")


class Counts(Protocol):
    """A counter of energy."""

    @property
    def range_uj(self) -> int:
        """The largest value, after which it begins anew."""

    def read(self) -> int:
        """Returns the microjoules by now; raises OSError if it cannot be read."""


@dataclass(frozen=True)
class Counter:
    """One of RAPL's."""

    path: Path
    """Of `energy_uj`."""
    range_uj: int
    """The largest value."""

    def read(self) -> int:
        """Returns the microjoules by now.

        Raises:
            OSError: It cannot be read.
        """
        return int(self.path.read_text(encoding="ascii"))


@dataclass(frozen=True)
class Meter:
    """The counters of a machine."""

    counters: Sequence[Counts]
    missing: str = ""
    """What is not counted, and why; where there are no counters, why alone."""

    @classmethod
    def here(cls, root: Path | None = None, *, gpu: bool = False) -> Meter:
        """Returns the counters of the packages, and of the memory that is counted apart; says why where there are none.

        All are needed: the energy of one of two sockets is nobody's.

        Args:
            root: Where Linux shows RAPL's; default: `ROOT`.
            gpu: Whether GPUs are counted too. Where either cannot be counted, the other is, and `missing` says so.
        """
        processors = cls._of_processors(ROOT if root is None else root)
        if not gpu:
            return processors
        gpus, why = nvml.counters()
        missing = [f"the processors are not counted ({processors.missing})"] if processors.missing else []
        missing += [f"the GPU is not counted ({why})"] if why else []
        return cls([*processors.counters, *gpus], "; ".join(missing))

    @classmethod
    def _of_processors(cls, root: Path) -> Meter:
        counters = []
        try:
            for zone in sorted(root.glob("intel-rapl:*")):
                name = (zone / "name").read_text(encoding="ascii").strip()
                if name.startswith("package") or name == "dram":
                    largest = int((zone / "max_energy_range_uj").read_text(encoding="ascii"))
                    counters.append(Counter(zone / "energy_uj", largest))
                    counters[-1].read()
        except PermissionError as exc:
            return cls((), f"{exc.filename} may not be read; allow it (sudo chmod a+r) or run as root")
        except (OSError, ValueError) as exc:
            return cls((), f"a counter cannot be read ({exc})")
        return cls(counters, "" if counters else f"this machine shows no energy counter ({root})")

    def joules(self, work: Callable[[], object]) -> float:
        """Returns what the machine has taken while `work` ran, in J.

        Args:
            work: Takes less time than a counter does to come round.

        Raises:
            OSError: A counter cannot be read any more.
        """
        before = [counter.read() for counter in self.counters]
        work()
        taken = (
            (counter.read() - first) % (counter.range_uj + 1)
            for counter, first in zip(self.counters, before, strict=True)
        )
        return sum(taken) / 1e6
