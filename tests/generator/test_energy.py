"""Joules by RAPL's counters, on files as Linux shows them: several sockets, wrap-around, and what may not be read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonpress_generator.bench.energy import of_thousand
from tritonpress_generator.energy import Counter, Meter

RANGE = 262_143_328_850
"""In µJ, of a common processor."""


def zone(root: Path, place: str, name: str, energy: int = 0, largest: int = RANGE) -> Path:
    """Returns the counter of a zone that is written as the kernel shows it."""
    folder = root / place
    folder.mkdir(parents=True)
    for file, text in (("name", name), ("energy_uj", str(energy)), ("max_energy_range_uj", str(largest))):
        (folder / file).write_text(f"{text}\n")
    return folder / "energy_uj"


def takes(*changes: tuple[Path, int]) -> None:
    for path, by in changes:
        largest = int((path.parent / "max_energy_range_uj").read_text())
        path.write_text(f"{(int(path.read_text()) + by) % (largest + 1)}\n")


def test_packages_and_their_memory_are_added_and_parts_of_them_are_not(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", "package-0", 5), zone(tmp_path, "intel-rapl:1", "package-1", 7)
    core, memory = zone(tmp_path, "intel-rapl:0:0", "core"), zone(tmp_path, "intel-rapl:0:1", "dram")
    whole, again = zone(tmp_path, "intel-rapl:2", "psys"), zone(tmp_path, "intel-rapl-mmio:0", "package-0")
    meter = Meter.here(tmp_path)
    assert [counter.path for counter in meter.counters] == [first, memory, second]
    changes = ((first, 2_000_000), (second, 300_000), (memory, 50_000), (core, 10**7), (whole, 10**8), (again, 10**9))
    assert meter.joules(lambda: takes(*changes)) == pytest.approx(2.35)


@given(before=st.integers(0, RANGE), taken=st.integers(0, RANGE))
def test_a_counter_that_begins_anew_is_right_all_the_same(
    before: int, taken: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = zone(tmp_path_factory.mktemp("powercap"), "intel-rapl:0", "package-0", before)
    meter = Meter([Counter(path, RANGE)])
    assert meter.joules(lambda: takes((path, taken))) == pytest.approx(taken / 1e6)


def test_a_thousand_sequences_are_counted_by_those_of_a_slice(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 1)
    feed = {"input_ids": np.ones((4, 8), np.int64)}

    def infer(_: object) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
        takes((path, 80_000))
        return {}

    assert of_thousand(Meter.here(tmp_path), infer, feed, 0.01) == pytest.approx(20)


def test_it_says_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = Meter.here(tmp_path / "none")
    assert (list(none.counters), none.missing) == ([], f"this machine shows no energy counter ({tmp_path / 'none'})")
    path = zone(tmp_path, "intel-rapl:0", "package-0")
    path.write_text("no number\n")
    assert "a counter cannot be read (invalid literal" in Meter.here(tmp_path).missing
    path.unlink()
    assert "No such file" in Meter.here(tmp_path).missing

    # Root may read everything, so that file permissions cannot be tried by all who run this.
    def refused(self: Counter) -> int:
        raise PermissionError(13, "Permission denied", os.fspath(self.path))

    path.write_text("1\n")
    monkeypatch.setattr(Counter, "read", refused)
    denied = Meter.here(tmp_path)
    assert not denied.counters
    assert denied.missing == f"{path} may not be read; allow it (sudo chmod a+r) or run as root"
