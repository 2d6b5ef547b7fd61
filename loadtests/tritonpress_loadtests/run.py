"""Runs a scenario against a server and writes what it found."""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from tritonpress_client import Connection, ModelStatistics, Options, TritonpressError

from tritonpress_loadtests import environment, server_side
from tritonpress_loadtests.binding import binding_resource
from tritonpress_loadtests.conductor import Conductor, Progress
from tritonpress_loadtests.course import breakpoint_found, check_size, course, recovery_found, warm_up
from tritonpress_loadtests.errors import LoadGeneratorError, NothingMeasuredError, ScenarioError
from tritonpress_loadtests.measured import Measured, merge
from tritonpress_loadtests.out_files import check_writable
from tritonpress_loadtests.report import write_report, write_results
from tritonpress_loadtests.results import Results, model_rows, summarise_stage
from tritonpress_loadtests.scenario import LoadedScenario, load_scenario
from tritonpress_loadtests.served_models import repository_sha256
from tritonpress_loadtests.server_side import are_counted, settled_statistics
from tritonpress_loadtests.server_watch import ServerWatch
from tritonpress_loadtests.slo import stage_misses, verdict
from tritonpress_loadtests.stages import Stage

_MOST_PROCESSES = 64


@dataclass(frozen=True)
class RunOptions:
    """What a run can be told beside its scenario."""

    duration_scale: float = 1.0
    """The scenario's durations are multiplied by it."""
    processes: int = 1
    """How many processes of this host make the load."""
    via: tuple[str, ...] = ()
    """Of each process on another host, the command that runs its last argument there by a shell: `ssh load2`."""
    server_pid: int | None = None
    """The server's process, where it is not found by its port on this machine."""
    metrics_url: str | None = None
    """`HOST:PORT` of Triton's Prometheus endpoint."""
    results_only: bool = False
    """Whether `results.json` is all that is written: no page, no plots, no table."""
    connection: Options = field(default_factory=Options)
    """How the server is trusted, and who asks."""
    security: Sequence[str] = ()
    """The arguments that say the same to the processes that make the load; see `connecting.security_words`."""

    def check(self) -> None:
        """Raises ScenarioError for a value out of range."""
        if not (math.isfinite(self.duration_scale) and self.duration_scale > 0):
            raise ScenarioError(f"`duration_scale` must be a finite number above 0, got {self.duration_scale:g}")
        least = 0 if self.via else 1
        if not least <= self.processes <= _MOST_PROCESSES:
            raise ScenarioError(f"`processes` must be in {least}..{_MOST_PROCESSES}, got {self.processes}")
        for command in self.via:
            if not command.split() or shutil.which(command.split()[0]) is None:
                raise ScenarioError(f"`via` must be a command that is found here, got {command!r}; such as 'ssh load2'")

    def words(self) -> list[str]:
        """Returns the options of the command that says the same."""
        words = [f"--duration-scale={self.duration_scale:g}"] if self.duration_scale != 1 else []
        words += [f"--processes={self.processes}"] if self.processes != 1 else []
        words += [f"--via={command}" for command in self.via]
        words += [f"--metrics-url={self.metrics_url}"] if self.metrics_url else []
        return [*words, *self.security]


def run(
    scenario: Path,
    url: str,
    out_dir: Path,
    *,
    options: RunOptions | None = None,
    progress: Progress | None = None,
) -> Results:
    """Returns the results (see `tritonpress_loadtests.results`) after writing them to `out_dir`.

    Writes `results.json`, `report.html`, `stages.csv` and plots as PNG, or the first alone. SIGINT and SIGTERM end the
    stage in hand; what was measured is reported with `interrupted` set.

    Args:
        scenario: The scenario's file.
        url: `HOST:PORT` of Triton's gRPC endpoint.
        out_dir: Made if it is missing; earlier results in it are replaced once the run has ended.
        options: See `RunOptions`.
        progress: Called with `tick` events twice a second and with each stage's summary as a `stage` event.

    Raises:
        ScenarioError: The scenario or an argument is at fault.
        LoadGeneratorError: The load generator ended before a stage was measured; later, `failure` says so.
        NothingMeasuredError: The run was interrupted before its first stage.
        NotWrittenError: What was measured cannot be written, or not all of it; the error has it.
        KeyboardInterrupt: A signal came behind the last stage; all is written.
        TritonpressError: The server or the model cannot be reached before the run.
    """
    options = options or RunOptions()
    options.check()
    loaded = load_scenario(scenario)
    check_size(loaded.scenario, options.duration_scale)
    server = server_side.check(loaded, url, options.connection)
    watch = ServerWatch(url, pid=options.server_pid, metrics_url=options.metrics_url)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ScenarioError(f"cannot make the folder {out_dir}: {exc.strerror}; give another --out") from exc
    check_writable(out_dir, remedy="give another --out")
    started_at = datetime.now().astimezone().isoformat(timespec="seconds")
    conductor = Conductor(loaded, url, processes=options.processes, via=options.via, security=options.security)
    # Until the results are written: a signal while the processes end would lose them.
    with conductor.interrupted_by_signals():
        with (
            Connection(url, timeout_s=loaded.scenario.timeout_s, options=options.connection) as connection,
            watch,
            conductor,
        ):
            load = _Load(loaded, connection, watch, conductor, progress or (lambda event: None), server["served"])
            stages = load.run(options.duration_scale)
            interrupted = conductor.interrupted
        command = ["tritonpress-load", "run", str(scenario), "--out", str(out_dir), "--url", url, *options.words()]
        results: Results = {
            "schema": "tritonpress-load/4",
            "scenario": _as_used(loaded),
            "url": url,
            "command": shlex.join(command),
            "started_at": started_at,
            "interrupted": interrupted,
            "failure": load.failure,
            "duration_scale": options.duration_scale,
            "processes": options.processes + len(options.via),
            "stages": stages,
            **_findings(loaded, stages),
            **server,
            "repository_sha256": repository_sha256(server["served"]),
            "versions": environment.versions(),
            "machine": environment.machine(watch.cores),
        }
        (write_results if options.results_only else write_report)(results, out_dir)
    if conductor.interrupted and not interrupted:
        raise KeyboardInterrupt
    return results


@dataclass
class _Load:
    """A run in hand."""

    loaded: LoadedScenario
    connection: Connection
    watch: ServerWatch
    conductor: Conductor
    progress: Progress
    served: dict[str, dict[str, Any]]
    failure: str = ""
    """Why the load ended before its last stage; empty if it did not."""
    _counts_all: bool = True
    """Whether the server has counted each answer so far; where it has not, it is not waited for again."""

    def run(self, scale: float) -> list[dict[str, Any]]:
        """Returns the summaries of the stages that were run, their durations multiplied by `scale`."""
        stages: list[dict[str, Any]] = []
        try:
            if first := warm_up(self.loaded.scenario):
                self._send(_scaled(first, scale), -1)
            planned = course(self.loaded.scenario, _kept_slo(self.loaded))
            stage = next(planned, None)
            while stage is not None and not self.conductor.interrupted:
                stages.append(self._measure(_scaled(stage, scale), len(stages)))
                self.progress({"event": "stage", **stages[-1]})
                try:
                    stage = planned.send(stages[-1])
                except StopIteration:
                    stage = None
        except LoadGeneratorError as exc:
            if not self.conductor.interrupted:
                if not stages:
                    raise
                self.failure = str(exc)
        if not stages:
            raise NothingMeasuredError("interrupted before the first stage; nothing is written")
        return stages

    def _send(self, stage: Stage, number: int) -> Measured:
        """Runs a stage between two snapshots of the server's statistics, both taken while no request is in flight.

        The warm-up too, so that no answer of it is counted in the stage behind it.
        """

        def tick(event: dict[str, Any]) -> None:
            self.progress({**event, "label": stage.label, "warm_up": number < 0, "duration_s": stage.duration_s})

        def begin() -> None:
            self._missing: list[str] = []
            self._before = self._statistics()
            self.watch.start()

        events = self.conductor.run(stage, number, progress=tick, before=begin)
        self.watch.stop()
        measured = merge(events, self.loaded.models)
        answered = {model: int(measured.counts(place)[1].sum()) for place, model in enumerate(self.loaded.models)}
        self._after = self._statistics(answered)
        return measured

    def _measure(self, stage: Stage, number: int) -> dict[str, Any]:
        """Returns the summary of a stage after running it.

        A server that tells its statistics no more is no reason to lose it: what it answered, or did not, is counted
        here.
        """
        measured = self._send(stage, number)
        server = self.watch.finish()  # the endpoint counts with the statistics, which are settled
        before, after = self._before, self._after
        rows = [] if before is None or after is None else model_rows(before, after)
        limits = self.loaded.scenario.generator
        summary = summarise_stage(stage, measured, self.loaded.models, rows, limits)
        summary["notes"] += dict.fromkeys([*self._missing, *self.watch.missing])
        summary["server"] = server
        summary["binding"] = binding_resource(summary, self.served, self.watch.cores)
        return summary

    def _statistics(self, answered: Mapping[str, int] | None = None) -> list[ModelStatistics] | None:
        """Returns the server's statistics; None, and a note, where it does not tell them.

        Args:
            answered: By model, how many requests have been answered since the last ones.
        """
        try:
            if answered is None or self._before is None:
                return settled_statistics(self.connection)
            after = settled_statistics(
                self.connection, before=self._before, answered=answered if self._counts_all else {}
            )
            self._counts_all = are_counted(self._before, after, answered)
            return after
        except TritonpressError as exc:
            self._missing.append(f"Triton's statistics are not there: {exc}")
            return None


def _kept_slo(loaded: LoadedScenario) -> Callable[[dict[str, Any]], bool]:
    return lambda stage: not stage_misses(stage, loaded.scenario.slo, loaded.slo_by_model)


def _findings(loaded: LoadedScenario, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the verdict, and what the scenario's shape was to find."""
    shape, slo = loaded.scenario.shape, loaded.scenario.slo
    findings: dict[str, Any] = {"breakpoint": None, "recovery": None}
    judged = stages
    if shape and shape.breakpoint:
        findings["breakpoint"] = breakpoint_found(stages, _kept_slo(loaded))
        judged = []  # trials are there to miss the limit; what counts is that one kept it
    elif shape and shape.recovery:
        findings["recovery"] = recovery_found(stages, slo)
        judged = [piece for stage in stages for piece in stage["pieces"][:1]]  # before the peak
    told = verdict(judged, slo, loaded.slo_by_model)
    if findings["breakpoint"] and findings["breakpoint"]["kept_per_s"] is None:
        told["misses"].append("no rate that was tried kept the limit: begin the search lower")
    if findings["recovery"] and findings["recovery"]["recovered_after_s"] is None:
        told["misses"].append("after the peak the limit was not kept again within the stage")
    return {**findings, "slo": {**told, "met": not told["misses"]}}


def _scaled(stage: Stage, scale: float) -> Stage:
    return stage.model_copy(update={"duration_s": stage.duration_s * scale})


def _as_used(loaded: LoadedScenario) -> dict[str, Any]:
    """Returns the scenario's keys, and what tells this test from another."""
    requests = []
    for kind in loaded.requests:
        words = np.array(kind.drawn_words())
        figures = {"mean": float(words.mean()), "max": int(words.max())}
        figures |= {name: float(np.percentile(words, share)) for name, share in (("p50", 50), ("p90", 90))}
        keys = kind.request.model_dump(mode="json")
        shares = {str(up_to): share for up_to, share in kind.class_shares().items()}
        counted = {"queries_count": len(kind.queries), "query_words": figures, "words_up_to": shares}
        requests.append({**keys, **counted})
    keys = loaded.scenario.model_dump(mode="json")
    return {**keys, "requests": requests, "path": str(loaded.path), "sha256": loaded.sha256}
