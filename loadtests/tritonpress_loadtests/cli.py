"""`tritonpress-load`: loads a server as a scenario says and reports what happened."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tritonpress_client import TritonpressError, connecting

from tritonpress_loadtests import plan_command
from tritonpress_loadtests.compare import bottlenecks, compare, differences, load_pair, page
from tritonpress_loadtests.errors import LoadTestError, NotWrittenError, ScenarioError
from tritonpress_loadtests.out_files import say
from tritonpress_loadtests.results import PERCENTILES, Results
from tritonpress_loadtests.run import RunOptions, run

_EXIT_STATUS = (
    "Exit status: 0 done; 1 a limit was missed, a run is worse or ended early, or the load generator was the"
    " bottleneck; 2 the input is at fault, or a file cannot be written; 130 interrupted."
)
_COLUMNS = ("load", "requests", "failed", "answers/s", "p50 ms", "p90 ms", "p95 ms", "p99 ms", "p99.9 ms", "max ms")
_MODEL_COLUMNS = ("model", "executions", "mean batch", "queue µs", "input µs", "inference µs", "output µs")


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status of the command."""
    arguments = parser().parse_args(argv)
    try:
        status: int = arguments.command(arguments)
    except (LoadTestError, TritonpressError) as exc:
        print(f"tritonpress-load: {exc}", file=sys.stderr)
        return exc.exit_status if isinstance(exc, LoadTestError) else 2
    except KeyboardInterrupt:
        return 130
    return status


def parser() -> argparse.ArgumentParser:
    """Returns the command's arguments."""
    parser = _Parser(prog="tritonpress-load", description=__doc__, epilog=_EXIT_STATUS)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="load a server as a scenario says", epilog=_EXIT_STATUS))
    _add_compare(commands.add_parser("compare", help="say what differs between two runs", epilog=_EXIT_STATUS))
    plan_command.add_arguments(commands.add_parser("plan", help="machines for a demand", epilog=_EXIT_STATUS))
    return parser


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "scenario",
        type=Path,
        metavar="SCENARIO",
        help="YAML; its keys are in docs/scenario.md, examples in loadtests/scenarios/",
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results and report are written")
    command.add_argument("--url", default="127.0.0.1:8001", help="HOST:PORT of Triton's gRPC endpoint (%(default)s)")
    command.add_argument("--duration-scale", type=float, default=1.0, metavar="X", help="multiply durations by X")
    command.add_argument("--processes", type=int, default=1, metavar="N", help="processes that make the load")
    command.add_argument(
        "--via",
        action="append",
        default=[],
        metavar="COMMAND",
        help="a process on another host too, such as 'ssh load2'",
    )
    command.add_argument("--metrics-url", metavar="HOST:PORT", help="Triton's Prometheus endpoint, for GPU and cache")
    command.add_argument("--server-pid", type=int, metavar="PID", help="tritonserver's, if its port does not tell it")
    command.add_argument("--results-only", action="store_true", help="write results.json, and no page or plots")
    connecting.add_security_arguments(command)
    command.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    progress = _Progress(on_terminal=bool(sys.stdout and sys.stdout.isatty()))
    options = RunOptions(
        duration_scale=arguments.duration_scale,
        processes=arguments.processes,
        via=tuple(arguments.via),
        server_pid=arguments.server_pid,
        metrics_url=arguments.metrics_url,
        results_only=arguments.results_only,
        connection=connecting.options(arguments),
        security=connecting.security_words(arguments),
    )
    try:
        results = run(arguments.scenario, arguments.url, arguments.out, options=options, progress=progress)
    except NotWrittenError as exc:
        say("\n".join(["", *summary(exc.results)]))
        raise
    finally:
        progress.clear()
    written = (
        f"results: {arguments.out / 'results.json'}"
        if arguments.results_only
        else f"report: {arguments.out / 'report.html'}"
    )
    say("\n".join(["", *summary(results), "", written]))
    if results["interrupted"]:
        return 130
    bottleneck = any(stage["generator"]["bottleneck"] for stage in results["stages"])
    return 0 if results["slo"]["met"] and not bottleneck and not results["failure"] else 1


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("before", type=Path, metavar="DIR", help="of a run, by its --out")
    command.add_argument("after", type=Path, metavar="DIR", help="of the run that is held to it")
    command.add_argument(
        "--tolerance", type=float, default=0.0, metavar="X", help="a loss that is accepted, as a share"
    )
    command.add_argument("--html", type=Path, metavar="FILE", help="write the comparison as a page")
    command.set_defaults(command=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    before, after = load_pair(arguments.before, arguments.after)
    rows = compare(before, after, tolerance=arguments.tolerance)
    table: list[tuple[str, ...]] = [("load", "figure", "before", "after", "change", "95 %", "")]
    for row in rows:
        word = "worse" if row["worse"] else "better" if row["better"] else "may be chance"
        figures = ("-", "-", "-", "too short", "")
        if row["change"] is not None:
            interval = f"{row['low']:+.1%} to {row['high']:+.1%}"
            figures = (f"{row['before']:.2f}", f"{row['after']:.2f}", f"{row['change']:+.1%}", interval, word)
        table.append((row["stage"], row["figure"], *figures))
    told = [f"note: {said}" for said in differences(before, after)]
    slow = bottlenecks(before, after)
    told += [f"failed: {said}" for said in slow]
    say("\n".join([*_aligned(table), *told]))
    if arguments.html:
        try:
            arguments.html.write_text(page(before, after, rows), encoding="utf-8")
        except OSError as exc:
            raise ScenarioError(f"cannot write {arguments.html}: {exc.strerror}; give another --html") from exc
    return 1 if slow or any(row["worse"] for row in rows) else 0


def summary(results: Results) -> list[str]:
    """Returns the closing tables of a run, line by line."""
    stages = results["stages"]
    lines = _aligned([_COLUMNS, *(row for stage in stages for row in _stage_rows(stage))])
    if stages:
        last = stages[-1]
        lines += [
            "",
            f"In the server at {last['label']}, mean per request:",
            *_aligned([_MODEL_COLUMNS, *_model_rows(last)]),
        ]
    for stage in stages:
        lines += [f"at {stage['label']}: {note}" for note in stage["notes"]]
        lines += [f"at {stage['label']}: {count} × {message}" for message, count in stage["errors"].items()]
    lines += [f"at {stage['label']} binds {stage['binding']}" for stage in stages]
    lines += _found(results)
    lines += [f"limit missed: {miss}" for miss in results["slo"]["misses"]]
    if any(stage["generator"]["bottleneck"] for stage in stages):
        lines.append("failed: the load generator was the bottleneck, so that the figures are its own")
    if results["failure"]:
        lines.append(f"failed: {results['failure']}; this is what was measured until then")
    if results["interrupted"]:
        lines.append("interrupted: this is what was measured until then")
    return lines


def _found(results: Results) -> list[str]:
    """Returns what the scenario's shape was to find, in a sentence."""
    lines = []
    if (found := results["breakpoint"]) is not None:
        kept = "no rate that was tried" if found["kept_per_s"] is None else f"{found['kept_per_s']:.0f}/s"
        missed = "" if found["missed_per_s"] is None else f", and missed at {found['missed_per_s']:.0f}/s"
        lines.append(f"breakpoint: the limit is kept at {kept}{missed}")
    if (found := results["recovery"]) is not None and found["recovered_after_s"] is not None:
        lines.append(f"recovery: {found['recovered_after_s']:.1f} s after the peak the limit was kept again")
    return lines


class _Progress:
    """Shows the load generator's events: a line that refreshes on a terminal, a line a stage elsewhere."""

    def __init__(self, *, on_terminal: bool) -> None:
        self._on_terminal = on_terminal

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "tick" and self._on_terminal:
            what = "warm-up" if event["warm_up"] else event["label"]
            p50 = "" if event["p50_ms"] is None else f"  p50 {event['p50_ms']:.1f} ms"
            line = f"{what}  {event['elapsed_s']:.0f}/{event['duration_s']:.0f} s  {event['requests']:,} requests{p50}"
            say(f"\r\x1b[K{line}  {event['failed']:,} failed", end="")
        elif event["event"] == "stage":
            self.clear()
            latency = event["latency_ms"]
            p99 = f", p99 {latency['p99']:.1f} ms" if latency else ""
            said = f"{event['duration_s']:.1f} s, {event['failed']:,} failed{p99}"
            say(f"{event['label']}: {said}{'' if event['stable'] else ', not stable'}")

    def clear(self) -> None:
        """Takes the refreshing line away."""
        if self._on_terminal:
            say("\r\x1b[K", end="")


def _stage_rows(stage: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yields the figures of all requests, and under them those of each part of a rate that changes, and each model."""
    yield _figures_row(stage["label"], stage)
    for piece in stage["pieces"]:
        yield _figures_row(f"  {piece['label']}", piece)
    if len(stage["by_model"]) > 1:
        for model, figures in stage["by_model"].items():
            yield _figures_row(f"  {model}", figures)


def _figures_row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    latency = figures["latency_ms"]
    cells = [f"{latency[name]:.2f}" if latency else "-" for name in (*PERCENTILES, "max")]
    return (name, str(figures["requests"]), str(figures["failed"]), f"{figures['throughput_per_s']:.1f}", *cells)


def _model_rows(stage: dict[str, Any]) -> list[tuple[str, ...]]:
    parts = ("queue_us", "compute_input_us", "compute_infer_us", "compute_output_us")
    return [
        (row["model"], str(row["executions"]), f"{row['mean_batch_size']:.2f}", *(f"{row[part]:.0f}" for part in parts))
        for row in stage["models"]
    ]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Returns the rows with the first column to the left and the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
