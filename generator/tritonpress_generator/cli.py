"""The command `tritonpress`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from tritonpress_generator import deploy_command, switch_command, tune_command
from tritonpress_generator.errors import GeneratorError
from tritonpress_generator.table import render

_INTERRUPTED = {
    "build": "the repository is as it was",
    "search": "the same command goes on from the last candidate",
    "verify": "the repository is as it was",
    "finetune": "the same command goes on from the last state that was saved",
    "distill": "the same command goes on from the last state that was saved",
    "evaluate": "nothing was written",
    "pack": "nothing was written",
    "unpack": "nothing was written",
    "deploy": "the same command writes what is missing",
    "tune": "the same command goes on from the last measurement",
    "promote": "the same command brings repository and servers together",
    "rollback": "promote, with the build that is to serve, brings repository and servers together",
}
_ELSEWHERE = {
    "deploy": deploy_command,
    "tune": tune_command,
    **dict.fromkeys(switch_command.COMMANDS, switch_command),
}
"""Commands with modules of their own."""
_RECIPE = "YAML; its keys are in docs/recipe.md"
_WORK = "where the passes' trainings keep their states (default: distilled/NAME)"
_DATA = "the folder of the data files (default: the recipe's)"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 it ran and the verdict is no, 2 the input is at fault."""
    options = _parsed(arguments)
    try:
        return _run(options)
    except GeneratorError as exc:
        print(f"tritonpress {options.command}: {exc}", file=sys.stderr)
        return exc.exit_status
    except OSError as exc:
        print(f"tritonpress {options.command}: {exc}; {_INTERRUPTED[options.command]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ntritonpress {options.command}: interrupted; {_INTERRUPTED[options.command]}", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    """Returns the exit status of a command that has not failed."""
    # The server's errors are known only where it is needed.
    if "recipe" in options:
        from tritonpress_generator import first_checks

        first_checks.check(options)
    if options.command == "build":
        _build(options)
    elif options.command == "search":
        _search(options.recipe, options.out, options.data, options.work)
    elif options.command == "finetune":
        _finetune(options.recipe, options.out, options.data)
    elif options.command == "distill":
        _distill(options.recipe, options.work, options.data, options.out)
    elif options.command == "evaluate":
        return _evaluate(options)
    elif options.command == "pack":
        _pack(options.repository, options.file)
    elif options.command == "unpack":
        _unpack(options.file, options.folder)
    elif options.command in _ELSEWHERE:
        _ELSEWHERE[options.command].run(options)
    else:
        return _verify(options.repository, options.server)
    return 0


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    options = parser().parse_args(arguments)
    if "recipe" in options and "work" in options:
        options.work = options.work or Path("distilled") / options.recipe.stem
    return options


def parser() -> argparse.ArgumentParser:
    """Returns the command's arguments."""
    parser = argparse.ArgumentParser(prog="tritonpress", description="Builds and verifies Triton model repositories.")
    commands = parser.add_subparsers(dest="command", required=True)
    build_parser = commands.add_parser("build", help="build a recipe into a model repository")
    build_parser.add_argument("recipe", type=Path, help=_RECIPE)
    build_parser.add_argument(
        "--out", type=Path, default=Path("model_repo"), help="the repository (default: model_repo)"
    )
    build_parser.add_argument("--data", type=Path, help=_DATA)
    build_parser.add_argument("--work", type=Path, help=_WORK)
    build_parser.add_argument(
        "--canary", action="store_true", help="place it beside the build that serves, as NAME_canary"
    )
    switch_command.add_server_arguments(build_parser)
    switch_command.add_parsers(commands)
    search_parser = commands.add_parser("search", help="try compressions under the gate, and keep the Pareto front")
    search_parser.add_argument("recipe", type=Path, help=_RECIPE)
    search_parser.add_argument(
        "--out", type=Path, default=Path("model_repo"), help="gets the best point's build (default: model_repo)"
    )
    search_parser.add_argument("--data", type=Path, help=_DATA)
    search_parser.add_argument("--work", type=Path, help="keeps what is found, to go on (default: distilled/NAME)")
    verify_parser = commands.add_parser("verify", help="load a repository in Triton and replay its golden requests")
    verify_parser.add_argument("repository", type=Path, help="as `tritonpress build` writes it")
    verify_parser.add_argument("--server", metavar="YY.MM", help="check plans for this release of NVIDIA's container")
    finetune_parser = commands.add_parser("finetune", help="train the recipe's task; alone or under torchrun")
    finetune_parser.add_argument("recipe", type=Path, help=_RECIPE)
    finetune_parser.add_argument("--out", type=Path, help="the checkpoint or adapter (default: finetuned/NAME)")
    finetune_parser.add_argument("--data", type=Path, help=_DATA)
    distill_parser = commands.add_parser("distill", help="train what passes have cut; alone or under torchrun")
    distill_parser.add_argument("recipe", type=Path, help=_RECIPE)
    distill_parser.add_argument("--out", type=Path, help="gets the result as masks and low-rank differences")
    distill_parser.add_argument("--data", type=Path, help=_DATA)
    distill_parser.add_argument("--work", type=Path, help=_WORK)
    evaluate_parser = commands.add_parser("evaluate", help="score the model, or a live endpoint, on labelled data")
    evaluate_parser.add_argument("recipe", type=Path, help=_RECIPE)
    evaluate_parser.add_argument("--target", default="torch", help="torch, onnx, engine or HOST:PORT (default: torch)")
    evaluate_parser.add_argument("--dataset", type=Path, help="labelled data of the task (default: the gate's)")
    evaluate_parser.add_argument("--data", type=Path, help=_DATA)
    evaluate_parser.add_argument("--work", type=Path, help=_WORK)
    evaluate_parser.add_argument(
        "--repository", type=Path, help="what the server serves: gate it, and record its answers in the manifest"
    )
    evaluate_parser.add_argument("--canary", action="store_true", help="ask the server for NAME_canary instead")
    evaluate_parser.add_argument("--wait-s", type=float, default=0.0, help="until the server is ready (default: 0)")
    evaluate_parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    pack_parser = commands.add_parser("pack", help="write a repository into one file, smaller, bit for bit")
    pack_parser.add_argument("repository", type=Path, help="a folder")
    pack_parser.add_argument("file", type=Path, help="the bundle")
    unpack_parser = commands.add_parser("unpack", help="write a bundle's repository, every file checked, into a folder")
    unpack_parser.add_argument("file", type=Path, help="the bundle")
    unpack_parser.add_argument("folder", type=Path, help="a new folder")
    deploy_command.add_parser(commands)
    tune_command.add_parser(commands)
    return parser


def _build(options: argparse.Namespace) -> None:
    from tritonpress_generator.build import build
    from tritonpress_generator.build_report import print_built

    recipe, out = options.recipe, options.out
    built = build(recipe, out, data=options.data, work=options.work, canary=options.canary, keep=options.keep)
    print_built(built, recipe, out)
    switch_command.bring_up(options, built.manifest["workload"], built.folder.name)


def _search(recipe: Path, out: Path, data: Path | None, work: Path) -> None:
    from tritonpress_generator.build_report import gate_line
    from tritonpress_generator.search import report
    from tritonpress_generator.search.run import search

    found = search(recipe, out, data=data, work=work)
    path = report.write(found, recipe.name)
    print(report.table(found))
    best = found.points[0]
    print(gate_line(best.gate))
    print(f"wrote {os.fspath(out / best.name)}: {best.label}; build {best.build}")
    print(
        f"wrote {os.fspath(found.folder)}: {len(found.points)} recipes, and {path.name}, after {found.minutes:.1f} min"
    )
    if len(found.points) > 1:
        another, more = found.points[1].recipe, f" --data {os.fspath(data)}" if data else ""
        print(f"another point: tritonpress build {os.fspath(another)}{more} --work {os.fspath(work)}")


def _finetune(recipe: Path, out: Path | None, data: Path | None) -> None:
    from tritonpress_generator.finetune import finetune
    from tritonpress_generator.training.distributed import world

    with world() as processes:
        done = finetune(recipe, out or Path("finetuned") / recipe.stem, data, processes)
    if not processes.writes:
        return
    metrics = list(next(iter(done.scores.values())))
    rows = [[name, *(str(row[metric]) for metric in metrics)] for name, row in done.scores.items()]
    print(render(["data", *metrics], rows))
    print(f"wrote {os.fspath(done.folder)}")


def _distill(recipe: Path, work: Path, data: Path | None, out: Path | None) -> None:
    from tritonpress_generator.distilled import distill
    from tritonpress_generator.passes.distill import summary
    from tritonpress_generator.training.distributed import world

    with world() as processes:
        report = distill(recipe, work, data, processes, out=out)
    if processes.writes:
        print(f"{summary(report)}\nits state is in {os.fspath(work)}, where build finds it (--work)")


def _evaluate(options: argparse.Namespace) -> int:
    from tritonpress_client import TritonpressError

    from tritonpress_generator.evaluate import evaluate

    try:
        metrics = evaluate(
            options.recipe,
            options.target,
            dataset=options.dataset,
            data=options.data,
            work=options.work,
            repository=options.repository,
            canary=options.canary,
            wait_s=options.wait_s,
        )
    except TritonpressError as exc:
        print(f"tritonpress evaluate: {exc}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps({"target": options.target, "metrics": metrics}))
    else:
        print(render(["target", *metrics], [[options.target, *(f"{value:.4f}" for value in metrics.values())]]))
    return 0


def _pack(repository: Path, file: Path) -> None:
    from tritonpress_generator.packing.pack import pack
    from tritonpress_generator.packing.sizes import HEADER, rows

    packed = pack(repository, file)
    print(render(HEADER, rows(packed)))
    print(f"wrote {os.fspath(file)}: {packed.files} files; the bound is of a code of single bytes, without repetitions")


def _unpack(file: Path, folder: Path) -> None:
    from tritonpress_generator.packing.unpack import unpack

    unpacked = unpack(file, folder)
    print(f"wrote {os.fspath(folder)}: {unpacked.files} files, {unpacked.bytes / 1e6:.1f} MB, each with its sha256")


def _verify(repository: Path, release: str | None) -> int:
    from tritonpress_client import TritonpressError
    from tritonpress_server import ServerError

    from tritonpress_generator.verify import check_plans, verify

    try:
        if release is not None:
            plans = check_plans(repository, release)
            print(f"{plans} plans fit Triton {release}" if plans else f"no plan here depends on Triton {release}")
            return 0
        compared = verify(repository)
    except (ServerError, TritonpressError) as exc:
        print(f"tritonpress verify: {exc}", file=sys.stderr)
        return 2
    for name, count in compared.items():
        print(f"{name}: {count} answers alone, in batches and concurrently are those of the build")
    return 0
