"""The command of a visit: `python -m visit prepare|pack|fill|run|gate|table …`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visit import packing
from visit.records import Records
from visit.shapes import MEASURED, SHAPES


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0 done, 2 the input is at fault."""
    options = _parser().parse_args(arguments)
    if options.command == "prepare":
        from visit import prepare

        for name in options.shapes:
            prepare.shape(name, options.folder)
        for recipe in options.recipes:
            prepare.workload(recipe, options.folder)
        return 0
    if options.command == "gate":
        from visit import gate

        print(gate.table(options.recipe, options.folder, options.records))
        return 0
    if options.command == "table":
        from visit import table

        print(table.render(options.records))
        return 0
    if options.command == "pack":
        return _pack(options.folder)
    return _there(options)


def _there(options: argparse.Namespace) -> int:
    # Not before: what it imports is not on every machine.
    from visit import steps

    if options.command == "fill":
        steps.fill(options.folder, options.work, options.shapes)
        return 0
    if unknown := set(options.only) - steps.PARTS.keys():
        print(f"visit: --only must name parts of {', '.join(steps.PARTS)}; got {', '.join(unknown)}", file=sys.stderr)
        return 2
    records = Records(options.work, options.out, options.budget_s)
    visit = steps.Visit(options.folder, records, options.python, options.shapes, options.build_s)
    steps.run(visit, options.only)
    return 0


def _pack(folder: Path) -> int:
    try:
        parts = packing.pack(folder)
    except packing.PackError as exc:
        print(f"visit: {exc}", file=sys.stderr)
        return 2
    print("A call each, in this order, with the file named here beside the tracked ones:")
    for number, part in enumerate(parts, start=1):
        measure = f" && bash {packing.THERE} run" if part is parts[-1] else ""
        size = part.stat().st_size / 2**20
        print(f"{number:2}  {part} ({size:.1f} MiB)  bash {packing.THERE} keep {part}{measure}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="visit", description="What one visit to a GPU measures.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="makes what travels; needs the generator")
    prepare.add_argument("folder", type=Path)
    prepare.add_argument("--shapes", nargs="*", default=[*SHAPES])
    prepare.add_argument("--recipes", nargs="*", type=Path, default=[])
    pack = commands.add_parser("pack", help="makes of a folder with `visit` and the kit the files that travel")
    pack.add_argument("folder", type=Path)
    run = commands.add_parser("run", help="on the GPU; what is done already is passed over")
    fill = commands.add_parser(
        "fill", help="puts the weights into the graphs; `run` has it done beside its first parts"
    )
    for command in (run, fill):
        command.add_argument("folder", type=Path, help="what `prepare` made")
        command.add_argument("--work", type=Path, required=True, help="where plans and records stay between calls")
        command.add_argument("--shapes", nargs="+", choices=[*SHAPES], default=[*MEASURED])
    run.add_argument("--out", type=Path, required=True, help="what comes back")
    run.add_argument("--budget-s", type=float, default=540.0, help="nothing outlasts it")
    run.add_argument("--build-s", type=float, default=150.0, help="the most that a plan may take")
    run.add_argument("--python", required=True, help="the interpreter that has torch with CUDA")
    run.add_argument("--only", nargs="+", default=[], metavar="PART", help="some of the parts, in their own order")
    gate = commands.add_parser("gate", help="a workload's metric of what its plans answered; needs the generator")
    gate.add_argument("recipe", type=Path)
    gate.add_argument("folder", type=Path)
    gate.add_argument("records", type=Path, help="the folder of what came back")
    table = commands.add_parser("table", help="the tables for docs/gpu.md")
    table.add_argument("records", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
