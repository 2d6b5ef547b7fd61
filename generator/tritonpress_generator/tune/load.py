"""What a server gives at a rate: `tritonpress-load`, in a process of its own."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from tritonpress_server import strict_yaml

from tritonpress_generator.errors import InputError

_FAILED_SHARE = 0.001
_WARM_UP_S = 2.0
_LEAST_S = 6.0
_LEAST_REQUESTS = 600
"""p99 rests on the slowest hundredth."""
_MOST_S = 30.0
_LONGER = 2.0
_BESIDE_S = 6.0
"""What a run takes beside its load, until one has shown it: processes, warm-up, evaluation."""
_INTERRUPTED = 130
_TIMEOUT_S = 5.0
"""Of a scenario that says nothing."""
# Enough to fill every instance with full batches, and then some.
_USERS = 32


@dataclass(frozen=True)
class Measured:
    """What was measured of a setting at a rate."""

    rate_per_s: float
    """At which requests were due, whatever became of those before."""
    p99_ms: float
    """Of the latency, counted from the moment at which a request was due."""
    low_ms: float
    high_ms: float
    """p99's interval at 95 %."""
    p50_ms: float
    failed: float
    """The share of requests that were not answered in time."""
    mean_batch: float
    """Requests in an execution of the step where the work is done."""
    binds: str
    """What limits it."""
    bottleneck: str
    """Why the load generator's own slowness is in the figures; empty if it is not."""
    sent: bool = True
    """Whether all requests that were due were sent, however late."""

    def keeps(self, limit_ms: float) -> bool:
        """Says whether p99 is within the limit: a generator that is late has hardly made it shorter."""
        return self.sound and self.p99_ms <= limit_ms

    @property
    def sound(self) -> bool:
        """Whether p99 is of all requests."""
        return self.sent and self.failed <= _FAILED_SHARE and not math.isinf(self.p99_ms)

    @property
    def fault(self) -> str:
        """Why the limit is missed, if it is, by something else than a server that is too slow; else empty."""
        if math.isinf(self.p99_ms):
            return self.binds
        if self.bottleneck:
            return f"the load generator {self.bottleneck}"
        return f"{self.failed:.1%} of the requests failed" if self.failed > _FAILED_SHARE else ""

    def undecided(self, limit_ms: float) -> bool:
        """Says whether p99's interval has the limit in it, so that a longer run could say something else."""
        return self.sound and self.low_ms < limit_ms < self.high_ms


class Traffic:
    """What users ask: a scenario's requests, or the golden ones of the builds."""

    security: Sequence[str] = ()
    """Arguments that say how the server is trusted, and who asks (`connecting.security_words`)."""

    def __init__(self, requests: list[dict[str, Any]], scenario: Mapping[str, Any], where: str) -> None:
        """Takes requests as a scenario has them, with absolute paths, and what else of a scenario holds."""
        if find_spec("tritonpress_loadtests") is None:
            raise InputError("tritonpress tune: needs the load tests; pip install 'tritonpress[loadtests]'")
        self.requests, self._scenario, self.where = requests, scenario, where
        self._beside_s = _BESIDE_S

    @property
    def timeout_s(self) -> float:
        """How long a request may take."""
        return float(self._scenario.get("timeout_s", _TIMEOUT_S))

    @property
    def models(self) -> list[str]:
        """Who is asked."""
        return [str(request["model"]) for request in self.requests]

    @property
    def identity(self) -> str:
        """What tells this traffic from another: what is asked, wherever it lies.

        Raises:
            InputError: A file of queries cannot be read.
        """
        asked = [{**request, "queries": _content(Path(request["queries"]))} for request in self.requests]
        return yaml.safe_dump([asked, dict(self._scenario)])

    @classmethod
    def read(cls, path: Path) -> Traffic:
        """Returns a scenario's requests; its stages and limits are passed over.

        Raises:
            InputError: It cannot be read, or names no requests. What else is wrong with it, `tritonpress-load` says.
        """
        try:
            scenario = strict_yaml.load(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as exc:
            raise InputError(f"scenario {path}: cannot be read ({' '.join(str(exc).split())})") from exc
        requests = scenario.get("requests") if isinstance(scenario, dict) else None
        if not isinstance(requests, list) or not all(
            isinstance(request, dict) and {"model", "queries"} <= set(request) for request in requests
        ):
            raise InputError(
                f"scenario {path}: must have `requests`, each with a `model` and `queries`; see docs/scenario.md"
            )
        kept = {key: scenario[key] for key in ("timeout_s", "seed", "max_in_flight", "generator") if key in scenario}
        absolute = [{**r, "queries": str((path.parent / str(r["queries"])).resolve())} for r in requests]
        return cls(absolute, kept, f"the requests of {path}")

    @classmethod
    def golden(cls, manifests: Mapping[str, Mapping[str, Any]], folder: Path) -> Traffic:
        """Returns the golden requests of builds, each workload as often, after writing them into `folder`."""
        requests = []
        for name, manifest in manifests.items():
            path = folder / f"{name}.jsonl"
            rows = [{key.lower(): text for key, text in r["inputs"].items()} for r in manifest["golden"]["requests"]]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            requests.append({"workload": manifest["task"], "model": name, "queries": str(path.resolve())})
        count = sum(len(manifest["golden"]["requests"]) for manifest in manifests.values())
        return cls(requests, {}, f"{count} golden requests; give --scenario for those that your users send")

    def most(self, url: str) -> float:
        """Returns what the server gives to so many users that all of it is busy, in requests/s.

        Raises:
            InputError: The load test refuses the scenario or the server.
        """
        stage = self._run(url, {"users": _USERS, "duration_s": _LEAST_S})
        return float(stage["throughput_per_s"])

    def takes_s(self, rate: float) -> float:
        """Returns how long `at` takes, in s, where p99 is not near the limit."""
        return _load_s(rate) + self._beside_s

    def at(self, url: str, rate: float, limit_ms: float, *, within_s: float = math.inf) -> Measured:
        """Returns what the server gives at a rate, measured once more and longer where p99 is near the limit.

        Args:
            url: `HOST:PORT` of the server.
            rate: In requests/s, of all workloads together; their moments are those of a Poisson process.
            limit_ms: The limit on p99.
            within_s: Nothing is measured once more that would take longer in all.

        Raises:
            InputError: The load test refuses the scenario or the server.
        """
        end = time.monotonic() + within_s
        found = self._measured(url, rate, _load_s(rate))
        longer_s = _load_s(rate) * _LONGER
        if found.undecided(limit_ms) and time.monotonic() + longer_s + self._beside_s <= end:
            found = self._measured(url, rate, longer_s)
        return found

    def _measured(self, url: str, rate: float, seconds: float) -> Measured:
        stage = self._run(url, {"rate_per_s": rate, "duration_s": seconds})
        latency = stage["latency_ms"] or {"p99": math.inf, "p50": math.inf}
        low, high = (stage["interval_ms"] or {"p99": [math.inf, math.inf]})["p99"]
        steps = [row for row in stage["models"] if row["model"] not in self.models] or stage["models"]
        work = max(steps, key=lambda row: row["compute_infer_us"] * row["answered"], default={"mean_batch_size": 0.0})
        return Measured(
            rate_per_s=rate,
            p99_ms=latency["p99"],
            low_ms=low,
            high_ms=high,
            p50_ms=latency["p50"],
            failed=stage["error_rate"],
            mean_batch=work["mean_batch_size"],
            binds=stage["binding"],
            bottleneck=stage["generator"]["bottleneck"],
            sent=stage["generator"]["gave_up_after_s"] is None,
        )

    def _run(self, url: str, stage: dict[str, Any]) -> dict[str, Any]:
        """Returns the only stage of a run's results."""
        with tempfile.TemporaryDirectory(prefix="tritonpress-") as name:
            folder = Path(name)
            scenario = {
                "name": "tune",
                **self._scenario,
                "requests": self.requests,
                "stages": [stage],
                "warm_up_s": _WARM_UP_S,
                "slo": {"error_rate": 1.0},
            }
            (folder / "scenario.yaml").write_text(yaml.safe_dump(scenario), encoding="utf-8")
            command = [sys.executable, "-m", "tritonpress_loadtests.cli", "run", str(folder / "scenario.yaml")]
            command += ["--out", str(folder / "out"), "--url", url, "--results-only", *self.security]
            began = time.monotonic()
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            results = folder / "out" / "results.json"
            if done.returncode == _INTERRUPTED:
                raise KeyboardInterrupt
            if not results.exists():
                said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise InputError(f"load test: {said.removeprefix('tritonpress-load: ').replace(str(folder), 'tune')}")
            found = dict(json.loads(results.read_text(encoding="utf-8"))["stages"][0])
            # Where requests fail their timeouts are waited for too, which says nothing of other runs.
            if not found["error_rate"]:
                self._beside_s = time.monotonic() - began - found["duration_s"]
            return found


def _load_s(rate: float) -> float:
    """Returns how long a rate is measured."""
    return min(max(_LEAST_S, _LEAST_REQUESTS / rate), _MOST_S)


def _content(path: Path) -> str:
    """Returns what tells a file of queries from another: the format, by its name, and a hash."""
    try:
        if not path.is_file():  # a pipe or a device would be waited for
            raise OSError("is no file")
        return hashlib.sha256(path.read_bytes()).hexdigest() + path.suffix
    except OSError as exc:
        why = exc.strerror or str(exc)
        raise InputError(f"scenario: its queries {path} cannot be read ({why}); correct the path") from exc
