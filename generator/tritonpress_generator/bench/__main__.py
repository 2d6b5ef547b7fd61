"""`python -m tritonpress_generator.bench RECIPE` (`make bench`)."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from tritonpress_server import ServerError

from tritonpress_generator import first_checks
from tritonpress_generator.bench.variants import Bench
from tritonpress_generator.errors import GeneratorError, InputError
from tritonpress_generator.machine import processor

SECTIONS = ("engine", "energy", "lengths", "served", "steady", "road", "request")
"""Each is a file of that name."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    options = parser().parse_args(arguments)
    figures = {}
    try:
        _check(options)
        machine = f"{processor()}, {len(os.sched_getaffinity(0))} cores"
        print(f"{options.recipe.stem}: {machine}; {options.rounds} rounds; median [middle 80 %]\n", flush=True)
        with ExitStack() as stack:
            bench = Bench(options.recipe, stack, rounds=options.rounds, slice_s=options.slice_s, data=options.data)
            for section in options.only:
                figures[section] = import_module(f"tritonpress_generator.bench.{section}").section(bench)
    except (GeneratorError, ServerError) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return getattr(exc, "exit_status", 2)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


def parser() -> argparse.ArgumentParser:
    """Returns the command's arguments."""
    parser = argparse.ArgumentParser(prog="tritonpress_generator.bench", description="Measures what a recipe builds.")
    parser.add_argument("recipe", type=Path, help="what is built and measured")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections (default: all)")
    parser.add_argument("--rounds", type=int, default=15, help="how often each slice is repeated (default: 15)")
    parser.add_argument("--slice-s", type=float, default=0.3, help="length of one engine slice in s (default: 0.3)")
    parser.add_argument("--data", type=Path, help="the folder of the passes' data files (default: the recipe's)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON; its folder is made")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuses, before hours of work, arguments with which nothing could be measured, or kept."""
    if options.rounds < 1:
        raise InputError(f"--rounds must be 1 or more, got {options.rounds}")
    if not (math.isfinite(options.slice_s) and options.slice_s > 0):
        raise InputError(f"--slice-s must be a number above 0, got {options.slice_s:g}")
    if options.data is not None:
        first_checks.check_data(options.data)
    if options.out is None:
        return
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InputError(f"--out {options.out}: its folder cannot be made ({exc}); give another") from exc
    place = options.out if options.out.exists() else options.out.parent
    if options.out.is_dir() or not os.access(place, os.W_OK):
        raise InputError(f"--out {options.out}: must be a file that can be written, is none; give another")


if __name__ == "__main__":
    sys.exit(main())
