"""The kinds of hostile files that load tests and clients read."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hostile_files import ROOT, Calls, Kind
from mutations import json_bytes, text_bytes, yaml_bytes
from tritonpress_client import TritonpressError, request_files
from tritonpress_loadtests import histograms
from tritonpress_loadtests.compare import compare, load_pair, page
from tritonpress_loadtests.demand import Demand
from tritonpress_loadtests.errors import LoadTestError
from tritonpress_loadtests.plan import make_plan
from tritonpress_loadtests.planned_runs import load_runs
from tritonpress_loadtests.scenario import load_scenario
from tritonpress_loadtests.simulator import Replica, simulate

_TAKES_S = 0.01


class Scenarios:
    """The shipped scenarios, and the files of queries that they name."""

    name = "scenarios"
    errors = (LoadTestError,)

    def __init__(self, model_repo: Path) -> None:
        self._cases = []
        for path in sorted((ROOT / "loadtests" / "scenarios").glob("*.yaml")):
            scenario = yaml.safe_load(path.read_text(encoding="utf-8"))
            queries = {}
            for request in scenario["requests"]:
                source = path.parent / request["queries"]
                request["queries"] = source.name
                queries[source.name] = _beginning(source)
            self._cases.append((scenario, queries))
        self._cases[0][0]["requests"][0]["words"] = {"up_to": [5, 40], "shares": [0.5, 0.5]}
        replay = {"rate_per_s": None, "arrivals": {"replay": {"file": "moments"}}, "duration_s": 3}
        queries = self._cases[-1][1]
        bursts = {"rate_per_s": 3, "arrivals": {"bursts": {"size": 2}}, "duration_s": 3}
        day = {"rate_per_s": 3, "arrivals": {"day": {"hourly": [1, 2]}}, "duration_s": 3}
        pieces = {"pieces": {"rates_per_s": [1, 5], "durations": [2, 1]}}
        changes = {"rate_per_s": None, "arrivals": pieces, "duration_s": 3}
        self._cases.append(
            ({**self._cases[-1][0], "stages": [replay, bursts, day, changes]}, {**queries, "moments": "0\n1.5\n"})
        )

    def case(self, chance: random.Random, folder: Path) -> Calls:
        scenario, queries = chance.choice(self._cases)
        changes_queries = chance.random() < 0.25
        for name, content in queries.items():
            data = content.encode()
            if changes_queries:
                data = (
                    json_bytes(chance, json.loads(content)) if name.endswith(".json") else text_bytes(chance, content)
                )
            (folder / name).write_bytes(data)
        text = yaml.safe_dump(scenario).encode() if changes_queries else yaml_bytes(chance, scenario)
        (folder / "scenario.yaml").write_bytes(text)
        yield "load", partial(load_scenario, folder / "scenario.yaml")


def _beginning(path: Path) -> str:
    """Returns a few of the records of a file of queries."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return "".join(text.splitlines(keepends=True)[:9])
    content = json.loads(text)
    return json.dumps({**content, "data": [{**content["data"][0], "paragraphs": content["data"][0]["paragraphs"][:2]}]})


class Requests:
    """Files of requests of `tritonpress-query`."""

    name = "requests"
    errors = (TritonpressError,)

    def __init__(self, model_repo: Path) -> None:
        rows = [("Where?", "Here, in Berlin."), ('When "then"?', "a, b"), ("Wer?", "Fräulein 東京")]
        self._texts = {
            ".jsonl": "\n".join(json.dumps({"question": q, "context": c}) for q, c in rows),
            ".csv": "question,context\n" + "\n".join('"' + q.replace('"', '""') + f'","{c}"' for q, c in rows),
            ".txt": "\n".join(q for q, _ in rows),
        }

    def case(self, chance: random.Random, folder: Path) -> Calls:
        suffix = chance.choice(list(self._texts))
        path = folder / f"requests{suffix}"
        text = self._texts[suffix]
        if suffix == ".jsonl" and chance.random() < 0.5:
            lines = [json_bytes(chance, json.loads(line)) for line in text.split("\n")]
            path.write_bytes(b"\n".join(lines))
        else:
            path.write_bytes(text_bytes(chance, text))
        if suffix != ".txt":
            yield "read", partial(request_files.read_requests, path, "question", "context")
        yield "requests", partial(request_files.requests, [], path, key="question")


class Results:
    """The results of a run, which plans and comparisons read."""

    name = "results"
    errors = (LoadTestError,)

    def __init__(self, model_repo: Path) -> None:
        stages = [_stage(rate_per_s) for rate_per_s in (10, 60, 85)]
        closed = {**stages[0], "label": "2 users", "loop": "closed", "users": 2, "arrivals": None}
        served = {"instances": 1, "max_batch_size": 0, "batched": False, "queue_delay_us": 0, "config_sha256": "0"}
        request = {"model": "m", "weight": 1, "words_up_to": {"8": 1.0}}
        self._run = {
            "schema": "tritonpress-load/4", "started_at": "2026-01-01T00:00:00+00:00", "repository_sha256": "0",
            "scenario": {"name": "n", "sha256": "0", "requests": [request]},
            "stages": [*stages, closed], "served": {"m_step": served}, "machine": {"cpu": "c", "cores": 2},
        }  # fmt: skip

    def case(self, chance: random.Random, folder: Path) -> Calls:
        for name, content in (("a", json.dumps(self._run).encode()), ("b", json_bytes(chance, self._run))):
            (folder / name).mkdir()
            (folder / name / "results.json").write_bytes(content)
        kind = chance.random()
        if kind < 0.5:
            yield "compare", partial(_compared, folder / "a", folder / "b")
        elif kind < 0.95:
            yield "load", partial(load_runs, [folder / "a", folder / "b"])
        else:  # takes a second or two
            yield "plan", partial(_planned, [folder / "a", folder / "b"])


def _stage(rate_per_s: int) -> dict[str, Any]:
    """Returns what a stage at that rate finds of a server that takes 10 ms for each request."""
    chance = np.random.default_rng(rate_per_s)
    due_s = np.cumsum(chance.exponential(1 / rate_per_s, 5_000))
    times_s = simulate(due_s, np.ones(5_000), Replica(instances=1, max_batch=1, fixed_s=_TAKES_S, per_row_s=0.0))
    recorded = histograms.new()
    for time_s in times_s.tolist():
        recorded.record_value(round(time_s * 1e6))
    percentiles = dict(
        zip(("p50", "p99", "p999"), np.quantile(times_s * 1e3, (0.5, 0.99, 0.999)).tolist(), strict=True)
    )
    figures = {
        "latency_ms": {"mean": float(times_s.mean()) * 1e3, **percentiles},
        "histogram": histograms.encoded(recorded),
    }
    lengths = {
        "whole_mean_ms": float(times_s.mean()) * 1e3,
        "words_up_to": {"8": 5_000},
        "alone": {"8": histograms.encoded(recorded)},
    }
    row = {
        "model": "m_step",
        "batch_sizes": {"1": 5_000},
        "execution_ms": {"1": _TAKES_S * 1e3},
        "queue_us": max(0.0, float(times_s.mean()) - _TAKES_S) * 1e6,
    }
    windows = {key: [percentiles[key[:3]]] * 20 for key in ("p50_ms", "p99_ms")}
    return {
        "label": f"{rate_per_s}/s", "loop": "open", "users": None, "arrivals": "poisson", "offered_per_s": rate_per_s,
        "throughput_per_s": rate_per_s, "duration_s": float(due_s[-1]), "error_rate": 0.0, "warm_up_s": 1.0,
        "windows": {"width_s": 1.0, "answered_per_s": [rate_per_s] * 20, "failed": [0] * 20, **windows},
        "generator": {"bottleneck": "", "processes": 1},
        "models": [row], "by_model": {"m": {**figures, **lengths}}, **figures,
    }  # fmt: skip


def _compared(before: Path, after: Path) -> None:
    pair = load_pair(before, after)
    page(*pair, compare(*pair))


def _planned(folders: list[Path]) -> None:
    make_plan(load_runs(folders), Demand(peak_per_s=20, p99_ms=60))


KINDS: dict[str, Callable[[Path], Kind]] = {kind.name: kind for kind in (Scenarios, Requests, Results)}
