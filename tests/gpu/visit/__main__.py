"""The command of a visit: `python -m visit prepare|fill|parity|fp16|int8|serving|gate|table …`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from visit.records import Records

STEPS = ("parity", "fp16", "int8", "serving")


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
    from visit import steps

    if options.command == "fill":
        steps.fill(options.folder, options.work)
        return 0
    records = Records(options.command, options.work, options.out, options.budget_s)
    if options.command == "parity":
        steps.run_parity(records, options.folder, options.out)
    elif options.command == "fp16":
        steps.run_fp16(records, options.folder, options.python)
    elif options.command == "int8":
        steps.run_int8(records, options.folder)
    else:
        from visit import serving

        serving.run(records, options.folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="visit", description="What one visit to a GPU measures.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="makes what travels; needs the generator")
    prepare.add_argument("folder", type=Path)
    prepare.add_argument("--shapes", nargs="*", default=["tiny", "minilm", "base", "large"])
    prepare.add_argument("--recipes", nargs="*", type=Path, default=[])
    for name in STEPS:
        step = commands.add_parser(name, help="on the GPU; what is done already is passed over")
        step.add_argument("folder", type=Path, help="what `prepare` made")
        step.add_argument("--work", type=Path, required=True, help="where plans and records stay between calls")
        step.add_argument("--out", type=Path, required=True, help="what comes back")
        step.add_argument("--budget-s", type=float, default=540.0, help="nothing is begun after it")
        if name == "fp16":
            step.add_argument("--python", required=True, help="the interpreter that has torch with CUDA")
    fill = commands.add_parser("fill", help="puts the weights into the graphs, beside the first steps")
    fill.add_argument("folder", type=Path)
    fill.add_argument("--work", type=Path, required=True)
    gate = commands.add_parser("gate", help="a workload's metric of what its plans answered; needs the generator")
    gate.add_argument("recipe", type=Path)
    gate.add_argument("folder", type=Path)
    gate.add_argument("records", type=Path, help="the folder of what came back")
    table = commands.add_parser("table", help="the tables for docs/gpu.md")
    table.add_argument("records", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
