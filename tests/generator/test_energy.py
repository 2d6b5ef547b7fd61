"""Joules by RAPL's counters, on files as Linux shows them, and by NVML's, of a library that stands for the driver's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_sources import write_task
from tiny_training import change
from tritonpress_generator import energy, nvml
from tritonpress_generator.bench.__main__ import main
from tritonpress_generator.bench.energy import of_thousand
from tritonpress_generator.energy import Counter, Meter

DOUBLE = Path(__file__).parents[1] / "nvml_double.c"
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


def driver(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, init: int = 0, devices: int = 2, energy: int | None = 0
) -> None:
    """Puts the double in the place of the driver's library; `energy` is the status of reading it, None: cannot be."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the double of NVML")
    path = folder / "libnvidia-ml.so"
    known = [f"-DINIT={init}", f"-DDEVICES={devices}", "-DWITHOUT_ENERGY" if energy is None else f"-DENERGY={energy}"]
    subprocess.run([compiler, "-shared", "-fPIC", *known, "-o", str(path), str(DOUBLE)], check=True)
    monkeypatch.setattr(nvml, "LIBRARY", str(path))


def test_all_gpus_are_added_to_the_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, monkeypatch)
    path = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    meter = Meter.here(tmp_path, gpu=True)
    assert (len(meter.counters), meter.missing) == (3, "")
    assert meter.joules(lambda: takes((path, 250_000))) == pytest.approx(0.25 + 2 * 1.5)
    without = Meter.here(tmp_path)
    assert without.joules(lambda: takes((path, 250_000))) == pytest.approx(0.25)


def test_gpus_alone_are_not_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, monkeypatch, devices=1)
    meter = Meter.here(tmp_path / "none", gpu=True)
    assert meter.joules(lambda: None) == pytest.approx(1.5)
    assert meter.missing.startswith("the processors are not counted (this machine shows no energy counter")


@pytest.mark.parametrize(
    ("status", "why"),
    [
        ({"init": 9}, "nvmlInit_v2: Driver Not Loaded"),
        ({"devices": 0}, "libnvidia-ml.so shows no GPU"),
        ({"energy": 3}, "nvmlDeviceGetTotalEnergyConsumption: Not Supported"),
        ({"energy": None}, "libnvidia-ml.so has no nvmlDeviceGetTotalEnergyConsumption"),
    ],
)
def test_gpu_that_cannot_be_counted_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: dict[str, int], why: str
) -> None:
    driver(tmp_path, monkeypatch, **status)
    path = zone(tmp_path, "intel-rapl:0", "package-0")
    meter = Meter.here(tmp_path, gpu=True)
    assert [counter.path for counter in meter.counters] == [path]
    assert meter.missing.startswith("the GPU is not counted (")
    assert meter.missing.endswith(f"{why})")


@pytest.mark.parametrize("on_gpu", [False, True])
def test_bench_counts_what_is_there_and_says_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_gpu: bool
) -> None:
    monkeypatch.setattr(energy, "ROOT", tmp_path / "powercap")
    monkeypatch.setattr(nvml, "LIBRARY", "libof-no-driver.so.1")
    zone(tmp_path / "powercap", "intel-rapl:0", "package-0")
    recipe = write_task(tmp_path, "classification")
    gpu = {"engine": {"onnxruntime_gpu": {"precision": "fp32"}}, "serve": {"lengths": "exact", "steps": "ensemble"}}
    change(recipe, graph=["fuse"], **(gpu if on_gpu else {}))
    out = tmp_path / "figures.json"
    options = ["--only", "energy", "--rounds", "1", "--slice-s", "0.002", "--out", str(out)]
    assert main([str(recipe), *options]) == 0
    figures = json.loads(out.read_text(encoding="utf-8"))["energy"]
    # The counter's file is the only one there is, and nobody moves it.
    assert [figure["joules_per_1000"] for figure in figures] == [[0.0]] * 3
    assert [figure["engine"] for figure in figures] == ["torch eager FP32", "ONNX Runtime FP32", "served engine"]
    printed = capsys.readouterr().out
    assert "J per 1,000 sequences" in printed
    assert ("No whole figure: the GPU is not counted (libof-no-driver.so.1: " in printed) == on_gpu
    assert all(("runs on the CPU here" in figure.get("missing", "")) == on_gpu for figure in figures)
