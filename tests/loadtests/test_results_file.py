"""Results that are not as they were written are refused in a line that says where."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tritonpress_loadtests import histograms, results_file
from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.results_file import PlannedRun, read_results

EMPTY = histograms.encoded(histograms.new())
LATENCY = {"mean": 10.0, "p50": 9.0, "p99": 24.0, "p999": 30.0}


def run() -> dict[str, Any]:
    """Returns results with what a plan reads."""
    alone = histograms.new()
    alone.record_value(9_000)
    figures = {"latency_ms": LATENCY, "words_up_to": {"8": 3}, "alone": {"8": histograms.encoded(alone)}}
    figures["whole_mean_ms"] = 10.0
    row = {"model": "m_step", "batch_sizes": {"1": 3}, "execution_ms": {"1": 8.0}, "queue_us": 90.0}
    windows = {"width_s": 1.0, "answered_per_s": [2.0], "p50_ms": [None], "p99_ms": [24]}
    stage = {
        "label": "20/s", "loop": "open", "arrivals": "poisson", "users": None, "offered_per_s": 20,
        "throughput_per_s": 20.0, "duration_s": 30.0, "error_rate": 0.0, "warm_up_s": 0, "windows": windows,
        "generator": {"bottleneck": "", "processes": 1},
        "models": [row], "latency_ms": LATENCY, "by_model": {"m": figures},
    }  # fmt: skip
    request = {"model": "m", "weight": 1, "words_up_to": {"8": 1.0}}
    served = {"instances": 1, "max_batch_size": 8, "batched": True, "queue_delay_us": 0, "config_sha256": "0"}
    return {
        "schema": "tritonpress-load/4", "scenario": {"name": "n", "requests": [request]},
        "stages": [stage], "served": {"m_step": served}, "machine": {"cpu": "c", "cores": 2}, "repository_sha256": "0",
    }  # fmt: skip


def refusal(folder: Path, text: str) -> str:
    (folder / "results.json").write_text(text, encoding="utf-8")
    with pytest.raises(ScenarioError) as raised:
        read_results(folder, PlannedRun)
    message = str(raised.value)
    assert str(folder) in message and "\n" not in message
    return message


def test_what_run_writes_is_read(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(run()), encoding="utf-8")
    assert read_results(tmp_path, PlannedRun) == run()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.pop("stages"), r": stages: field required; give a folder that"),
        (lambda run: run["stages"].clear(), r": stages: list should have at least 1 item"),
        (lambda run: run["stages"][0].update(loop="closed"), r": stages\.0: users: must be a number in a closed loop"),
        (
            lambda run: run["stages"][0]["windows"].update(width_s=0),
            r": stages\.0\.windows\.width_s: .* than 0",
        ),
        (lambda run: run["stages"][0].pop("arrivals"), r": stages\.0\.arrivals: field required"),
        (lambda run: run["stages"][0].update(arrivals=1), r": stages\.0\.arrivals\.str: "),
        # No machine has been looked at for so long, and no float holds what is computed of it.
        (
            lambda run: run["stages"][0]["models"][0].update(execution_ms={"1": 1e300}),
            r": stages\.0\.models\.0\.execution_ms\.1: .* less than or equal",
        ),
        (lambda run: run["stages"][0].update(duration_s=1e300), r": stages\.0\.duration_s: .* less than or equal"),
        (lambda run: run["scenario"]["requests"][0].update(weight=1e-300), r"requests\.0\.weight: .* greater than"),
        (lambda run: run["stages"][0].update(offered_per_s=float("inf")), r": stages\.0\.offered_per_s: .* finite"),
        (lambda run: run["stages"][0]["by_model"].clear(), r": stages\.0\.by_model: must have m;"),
        (
            lambda run: run["stages"][0]["by_model"]["m"]["alone"].update({"8": "HISTFAAA"}),
            r": stages\.0\.by_model\.m\.alone\.8: must be an HdrHistogram as `run` writes it \(HdrLength",
        ),
        (
            lambda run: run["stages"][0]["by_model"]["m"]["alone"].update({"8": EMPTY}),
            r": stages\.0\.by_model\.m\.alone\.8: must hold a latency",
        ),
        (
            lambda run: run["stages"][0]["by_model"]["m"]["words_up_to"].clear(),
            r": stages\.0\.by_model\.m: words_up_to and whole_mean_ms: must be of the answers",
        ),
        (
            lambda run: run["stages"][0]["by_model"]["m"].update(words_up_to={"4": 3}, alone={}),
            r": stages\.0\.by_model\.m\.words_up_to: '4' is no class of the scenario",
        ),
        (
            lambda run: run["stages"][0]["by_model"]["m"].update(words_up_to={"4": 3}),
            r": stages\.0\.by_model\.m: alone: '8' is not in words_up_to",
        ),
        (
            lambda run: run["stages"][0]["by_model"]["m"].update(words_up_to={"8": 10**400}),
            r": stages\.0\.by_model\.m\.words_up_to\.8: .* less than",
        ),
        (
            lambda run: run["scenario"]["requests"][0].update(words_up_to={"7": 1.0}),
            r": scenario\.requests\.0\.words_up_to: must be {words: share} with a power of two, got '7'",
        ),
        (
            lambda run: run["scenario"]["requests"][0]["words_up_to"].update({"16": 0.5}),
            r": scenario\.requests\.0\.words_up_to: must add up to 1, got 1\.5",
        ),
        (
            lambda run: run["stages"][0]["models"][0]["batch_sizes"].update({"2": 1}),
            r": stages\.0\.models\.0: execution_ms: must have the time of 2 rows",
        ),
        (lambda run: run["scenario"]["requests"][0].update(weight="a"), r": scenario\.requests\.0\.weight: .* number"),
        (lambda run: run.update(schema="tritonpress-load/2"), r" is of another version; run its scenario again"),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    results = run()
    change(results)
    assert re.search(message, refusal(tmp_path, json.dumps(results)))


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "{", '{"schema": 1}'])
def test_what_is_no_json_object_of_ours_is_refused(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path, text)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_file, "MOST_BYTES", 1 << 20)
    assert "must be at most 1 MiB, is 2;" in refusal(tmp_path, " " * (2 << 20))
