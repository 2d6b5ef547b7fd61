"""Comparisons: chance is called chance, a change is found, and the exit status says which."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonpress_loadtests.cli import main
from tritonpress_loadtests.compare import compare


def run(p99_ms: float, *, seed: int, count: int = 30, label: str = "10/s", failed: float = 0.0) -> dict[str, Any]:
    chance = np.random.default_rng(seed)
    windows = {
        "width_s": 1.0,
        "p50_ms": chance.normal(5, 0.5, count).tolist(),
        "p99_ms": chance.normal(p99_ms, 2, count).tolist(),
        "answered_per_s": chance.normal(10, 1, count).tolist(),
        "failed": chance.poisson(10 * failed, count).tolist(),
    }
    return {
        "schema": "tritonpress-load/4",
        "scenario": {"name": "n", "sha256": "0", "requests": [{"model": "m", "weight": 1}]},
        "started_at": "t", "repository_sha256": "0", "machine": {},
        "stages": [
            {
                "label": label, "warm_up_s": 0.0, "windows": windows,
                "generator": {"bottleneck": "", "processes": 1},
            }
        ],
    }  # fmt: skip


def write(folder: Path, **runs: dict[str, Any]) -> list[str]:
    for name, results in runs.items():
        (folder / name).mkdir()
        (folder / name / "results.json").write_text(json.dumps(results))
    return [str(folder / name) for name in runs]


def test_a_change_is_found_and_chance_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, same, slower = write(tmp_path, a=run(20, seed=0), b=run(20, seed=1), c=run(25, seed=2))
    assert main(["compare", before, same]) == 0
    assert "worse" not in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["compare", before, slower, "--html", str(page)]) == 1
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]][-1] == "worse"
    assert page.read_text().count('class="bad">worse') == 1
    assert main(["compare", slower, before]) == 0
    assert "better" in capsys.readouterr().out
    assert main(["compare", before, slower, "--tolerance", "0.5"]) == 0


def alike(count: int, stages: int, *, seed: int) -> dict[str, Any]:
    """Returns a run of stages whose windows differ by chance alone: a few are ten times as slow, and some fail."""
    parts = [run(20, seed=1000 * seed + number, count=count, failed=0.02) for number in range(stages)]
    for number, part in enumerate(parts):
        (stage,) = part["stages"]
        slow = 1 + 9 * (np.random.default_rng([seed, number]).random(count) < 0.1)
        stage["windows"]["p99_ms"] = (slow * stage["windows"]["p99_ms"]).tolist()
    return {**parts[0], "stages": [part["stages"][0] for part in parts]}


@pytest.mark.parametrize(("counts", "stages"), [((5, 5), 3), ((6, 6), 3), ((10, 10), 1), ((5, 20), 3), ((20, 20), 6)])
def test_one_page_of_twenty_has_a_false_alarm_however_short_its_stages(counts: tuple[int, int], stages: int) -> None:
    pairs = [[alike(count, stages, seed=2 * n + side) for side, count in enumerate(counts)] for n in range(200)]
    alarms = sum(any(row["worse"] or row["better"] for row in compare(*pair)) for pair in pairs)
    # 10 of 200 are expected, and 17 or more come by chance in 1 of 40 cases.
    assert alarms <= 16


@pytest.mark.parametrize(("count", "found"), [(5, 3.5), (20, 1.2)])
def test_a_change_of_few_standard_deviations_is_found(count: int, found: float) -> None:
    # Windows' p99 has a standard deviation of 2 ms.
    pairs = [(run(20, seed=2 * n, count=count), run(20 + 2 * found, seed=2 * n + 1, count=count)) for n in range(40)]
    assert sum(compare(*pair)[-1]["worse"] for pair in pairs) >= 32


def test_failures_are_compared_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound, failing, same = write(
        tmp_path, a=run(20, seed=0), b=run(20, seed=0, failed=0.05), c=run(20, seed=2, failed=0.05)
    )
    assert main(["compare", sound, failing]) == 1
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "failed %" in line]
    before, after, *_, word = row.replace("failed %", "").split()[1:]
    assert (float(before), word) == (0, "worse")
    assert 2 < float(after) < 9
    # What is accepted is a share of what failed before, of nothing nothing.
    assert main(["compare", sound, failing, "--tolerance", "0.5"]) == 1
    assert main(["compare", failing, sound]) == 0
    assert "better" in capsys.readouterr().out
    assert main(["compare", failing, same]) == 0
    assert "failed %" in capsys.readouterr().out
    assert main(["compare", sound, sound]) == 0
    assert "failed %" not in capsys.readouterr().out


def test_what_else_tells_two_runs_apart_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = run(20, seed=1)
    other["scenario"]["sha256"] = "1"
    other["machine"] = {"cores": 4}
    before, after = write(tmp_path, a=run(20, seed=0), b=other)
    page = tmp_path / "page.html"
    assert main(["compare", before, after, "--html", str(page)]) == 0
    told = ["the scenarios' files differ", "the machines differ"]
    assert capsys.readouterr().out.splitlines()[-2:] == [f"note: {said}" for said in told]
    assert all(said.replace("'", "&#39;") in page.read_text() for said in told)
    assert main(["compare", before, before]) == 0
    assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_generator_that_was_the_bottleneck_fails_the_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    runs = {"before": run(20, seed=0), "after": run(20, seed=1)}
    runs[when]["stages"][0]["generator"]["bottleneck"] = "used 99% of a core: use more --processes"
    page = tmp_path / "page.html"
    assert main(["compare", *write(tmp_path, **runs), "--html", str(page)]) == 1
    said = f"the load generator was the bottleneck {when} at 10/s: it used 99% of a core: use more --processes"
    assert capsys.readouterr().out.splitlines()[-1] == f"failed: {said}"
    assert said in page.read_text()


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, short = write(tmp_path, a=run(20, seed=0), b=run(20, seed=1, label="20/s"), c=run(20, seed=1, count=3))
    assert main(["compare", a, b]) == 2
    assert "not of the same stages (10/s; 20/s); run one scenario twice" in capsys.readouterr().err
    assert main(["compare", a, str(tmp_path / "nowhere")]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert main(["compare", a, short]) == 0
    assert "too short" in capsys.readouterr().out


def test_a_page_that_cannot_be_written_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = write(tmp_path, a=run(20, seed=0), b=run(20, seed=1))
    missing = tmp_path / "missing" / "x.html"
    assert main(["compare", before, after, "--html", str(missing)]) == 2
    said = capsys.readouterr().err
    assert said == f"tritonpress-load: cannot write {missing}: No such file or directory; give another --html\n"


def test_what_cannot_be_printed_leaves_page_and_status(tmp_path: Path) -> None:
    before, after = write(tmp_path, a=run(20, seed=0), b=run(25, seed=2))
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "tritonpress_loadtests.cli", "compare", before, after, "--html", str(page)]
    reading, unread = os.pipe()
    os.close(reading)
    cases = [
        (unread, ""),
        (os.open("/dev/full", os.O_WRONLY), "cannot print: No space left on device; nothing more is shown"),
    ]
    for lost, words in cases:
        done = subprocess.run(command, stdout=lost, stderr=subprocess.PIPE, text=True, check=False)
        os.close(lost)
        assert done.returncode == 1
        assert done.stderr == (f"tritonpress-load: {words}\n" if words else "")
        page.unlink()
