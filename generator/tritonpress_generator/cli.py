"""The command `tritonpress`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from tritonpress_generator.errors import GeneratorError
from tritonpress_generator.table import render


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 it ran and the verdict is no, 2 the input is at fault."""
    parser = argparse.ArgumentParser(prog="tritonpress", description="Builds and verifies Triton model repositories.")
    commands = parser.add_subparsers(dest="command", required=True)
    build_parser = commands.add_parser("build", help="build a recipe into a model repository")
    build_parser.add_argument("recipe", type=Path)
    build_parser.add_argument(
        "--out", type=Path, default=Path("model_repo"), help="the repository (default: model_repo)"
    )
    verify_parser = commands.add_parser("verify", help="load a repository in Triton and replay its golden requests")
    verify_parser.add_argument("repository", type=Path)
    options = parser.parse_args(arguments)
    # The server's errors are known only where it is needed.
    try:
        if options.command == "build":
            _build(options.recipe, options.out)
        else:
            return _verify(options.repository)
    except GeneratorError as exc:
        print(f"tritonpress {options.command}: {exc}", file=sys.stderr)
        return exc.exit_status
    except KeyboardInterrupt:
        print(f"\ntritonpress {options.command}: interrupted; the repository is as it was", file=sys.stderr)
        return 130
    return 0


def _build(recipe: Path, out: Path) -> None:
    from tritonpress_generator.build import LATENCY_TOKENS, build
    from tritonpress_generator.repository import size_bytes

    built = build(recipe, out)
    metrics = list(built.rows[0].metrics)
    first = built.rows[0]
    header = ["stage", "size MB", f"ms at {LATENCY_TOKENS} tokens", "speed-up", *metrics]
    rows = [
        [
            row.stage,
            f"{row.size_bytes / 1e6:.1f}",
            f"{row.latency_ms:.2f}",
            f"{first.latency_ms / row.latency_ms:.1f}x",
            *(f"{row.metrics[metric]:.4f}" for metric in metrics),
        ]
        for row in built.rows
    ]
    gate = built.manifest["gate"]
    print(render(header, rows))
    print(f"gate: {gate['metric']} {gate['served']:.4f}, limit {gate['limit']:.4f}: passed")
    print(lengths_line(built.manifest["lengths"]))
    share = size_bytes(built.manifest) / first.size_bytes
    size = f"{size_bytes(built.manifest) / 1e6:.1f} MB, {share:.0%} of the checkpoint"
    print(f"wrote {os.fspath(built.folder)} and its steps, {size}")


def lengths_line(lengths: dict[str, Any]) -> str:
    """Returns how requests of different lengths share the engine, and what else was measured."""
    measured = lengths["measured"]
    line = f"lengths: {lengths['form']}, {lengths['padding']:.1%} of the computed tokens are padding"
    if not measured:
        return line
    figures = ", ".join(f"{form} {figure['texts_per_s']:.0f}" for form, figure in measured.items())
    return f"{line} (texts/s: {figures})"


def _verify(repository: Path) -> int:
    from tritonpress_client import TritonpressError
    from tritonpress_server import ServerError

    from tritonpress_generator.verify import verify

    try:
        compared = verify(repository)
    except (ServerError, TritonpressError) as exc:
        print(f"tritonpress verify: {exc}", file=sys.stderr)
        return 2
    for name, count in compared.items():
        print(f"{name}: {count} answers alone, in batches and concurrently are those of the build")
    return 0
