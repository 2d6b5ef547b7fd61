"""`tritonpress tune`: its arguments, and what it prints and writes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from tritonpress_generator.errors import InputError
from tritonpress_generator.switch_command import add_security_arguments


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "tune", help="find the configs that serve the most within a limit on p99, by measurement"
    )
    parser.add_argument("repository", type=Path, help="as `tritonpress build` writes it")
    parser.add_argument("--p99-ms", type=float, required=True, metavar="M", help="the limit on the latency's p99")
    parser.add_argument(
        "--scenario", type=Path, help="of tritonpress-load, whose requests are sent (default: the golden requests)"
    )
    parser.add_argument("--budget-minutes", type=float, default=10.0, metavar="N", help="(default: 10)")
    parser.add_argument("--cores", type=int, metavar="N", help="of the machine that serves (default: this one's)")
    parser.add_argument(
        "--response-cache", action="store_true", help="try it too: it pays by how often requests repeat"
    )
    parser.add_argument("--work", type=Path, default=Path("tuned"), help="measurements and the page (default: tuned)")
    parser.add_argument(
        "--server",
        metavar="HOST:PORT",
        help="a Triton that serves the repository with --model-control-mode=explicit (default: an embedded one)",
    )
    add_security_arguments(parser)


def run(options: argparse.Namespace) -> None:
    """Tunes, prints what was found, and places a build with the configs that were found beside the one that serves.

    Raises:
        GeneratorError: See `tune.run.tune`.
    """
    from tritonpress_client import TritonpressError, connecting
    from tritonpress_server import ServerError

    from tritonpress_generator.tune import report, written
    from tritonpress_generator.tune.run import tune
    from tritonpress_generator.tune.session import TuneConfig

    try:
        config = TuneConfig(
            p99_ms=options.p99_ms,
            budget_minutes=options.budget_minutes,
            scenario=options.scenario,
            server=options.server,
            connection=connecting.options(options),
            security=connecting.security_words(options),
            cores=options.cores,
            cache=options.response_cache,
        )
        found = tune(options.repository, config, options.work)
    except (ServerError, TritonpressError) as exc:
        raise InputError(str(exc)) from exc
    entries = written.entries(found)
    lines = {name: written.recipe_lines(changed) for name, changed in entries.items()}
    page = options.work / "report.html"
    report.write(found, page, lines)
    print("\n".join(report.summary(found)))
    print(f"wrote {os.fspath(page)}")
    for name, text in lines.items():
        print(f"the same in the recipe of {name}, in place of what it has:")
        print("\n".join(f"  {line}" for line in text))
    for name, build in written.place(options.repository, found, report.manifest_entry(found)).items():
        print(f"to serve it: tritonpress promote {os.fspath(options.repository)} {name} {build}")
