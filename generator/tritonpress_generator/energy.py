"""Energy that the processors have taken, by the counters that Linux shows: RAPL's, under `/sys/class/powercap`.

Each package (socket) has a counter in microjoules that begins anew after `max_energy_range_uj`, on a busy server after
some minutes; memory, where it is counted apart (`dram`), is none of the package's. The counters are the machine's: what
else runs is in them. Source: https://docs.kernel.org/power/powercap/powercap.html. A GPU is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/class/powercap")


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

    counters: Sequence[Counter]
    missing: str = ""
    """Why there are none."""

    @classmethod
    def here(cls, root: Path = ROOT) -> Meter:
        """Returns the counters of the packages, and of the memory that is counted apart; says why where there are none.

        All are needed: the energy of one of two sockets is nobody's.
        """
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
