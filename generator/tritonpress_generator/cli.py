"""The command `tritonpress`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritonpress_generator import deploy_command, switch_command
from tritonpress_generator.errors import GeneratorError
from tritonpress_generator.table import render

if TYPE_CHECKING:
    from tritonpress_generator.build import Built

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
    "promote": "the same command brings repository and servers together",
    "rollback": "promote, with the build that is to serve, brings repository and servers together",
}
_WORK = "where the passes' trainings keep their states (default: distilled/NAME)"
_DATA = "the folder of the data files (default: the recipe's)"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 it ran and the verdict is no, 2 the input is at fault."""
    options = _parser().parse_args(arguments)
    # The server's errors are known only where it is needed.
    try:
        if options.command == "build":
            _build(options)
        elif options.command == "search":
            _search(options.recipe, options.out, options.data, _work(options))
        elif options.command == "finetune":
            _finetune(options.recipe, options.out, options.data)
        elif options.command == "distill":
            _distill(options.recipe, _work(options), options.data, options.out)
        elif options.command == "evaluate":
            return _evaluate(options)
        elif options.command == "pack":
            _pack(options.repository, options.file)
        elif options.command == "unpack":
            _unpack(options.file, options.folder)
        elif options.command == "deploy":
            deploy_command.run(options)
        elif options.command in switch_command.COMMANDS:
            switch_command.run(options)
        else:
            return _verify(options.repository, options.server)
    except GeneratorError as exc:
        print(f"tritonpress {options.command}: {exc}", file=sys.stderr)
        return exc.exit_status
    except KeyboardInterrupt:
        print(f"\ntritonpress {options.command}: interrupted; {_INTERRUPTED[options.command]}", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tritonpress", description="Builds and verifies Triton model repositories.")
    commands = parser.add_subparsers(dest="command", required=True)
    build_parser = commands.add_parser("build", help="build a recipe into a model repository")
    build_parser.add_argument("recipe", type=Path)
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
    search_parser.add_argument("recipe", type=Path)
    search_parser.add_argument(
        "--out", type=Path, default=Path("model_repo"), help="gets the best point's build (default: model_repo)"
    )
    search_parser.add_argument("--data", type=Path, help=_DATA)
    search_parser.add_argument("--work", type=Path, help="keeps what is found, to go on (default: distilled/NAME)")
    verify_parser = commands.add_parser("verify", help="load a repository in Triton and replay its golden requests")
    verify_parser.add_argument("repository", type=Path)
    verify_parser.add_argument("--server", metavar="YY.MM", help="check plans for this release of NVIDIA's container")
    finetune_parser = commands.add_parser("finetune", help="train the recipe's task; alone or under torchrun")
    finetune_parser.add_argument("recipe", type=Path)
    finetune_parser.add_argument("--out", type=Path, help="the checkpoint or adapter (default: finetuned/NAME)")
    finetune_parser.add_argument("--data", type=Path, help=_DATA)
    distill_parser = commands.add_parser("distill", help="train what passes have cut; alone or under torchrun")
    distill_parser.add_argument("recipe", type=Path)
    distill_parser.add_argument("--out", type=Path, help="gets the result as masks and low-rank differences")
    distill_parser.add_argument("--data", type=Path, help=_DATA)
    distill_parser.add_argument("--work", type=Path, help=_WORK)
    evaluate_parser = commands.add_parser("evaluate", help="score the model, or a live endpoint, on labelled data")
    evaluate_parser.add_argument("recipe", type=Path)
    evaluate_parser.add_argument("--target", default="torch", help="torch, onnx, engine or HOST:PORT (default: torch)")
    evaluate_parser.add_argument("--dataset", type=Path, help="labelled data of the task (default: the gate's)")
    evaluate_parser.add_argument("--data", type=Path, help=_DATA)
    evaluate_parser.add_argument("--work", type=Path, help=_WORK)
    evaluate_parser.add_argument(
        "--repository", type=Path, help="what the server serves: gate it, and record its answers in the manifest"
    )
    evaluate_parser.add_argument("--wait-s", type=float, default=0.0, help="until the server is ready (default: 0)")
    evaluate_parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    pack_parser = commands.add_parser("pack", help="write a repository into one file, smaller, bit for bit")
    pack_parser.add_argument("repository", type=Path)
    pack_parser.add_argument("file", type=Path, help="the bundle")
    unpack_parser = commands.add_parser("unpack", help="write a bundle's repository, every file checked, into a folder")
    unpack_parser.add_argument("file", type=Path, help="the bundle")
    unpack_parser.add_argument("folder", type=Path, help="a new folder")
    deploy_command.add_parser(commands)
    return parser


def _work(options: argparse.Namespace) -> Path:
    """Returns where the trainings of a recipe's passes keep their states."""
    work: Path = options.work or Path("distilled") / options.recipe.stem
    return work


def _build(options: argparse.Namespace) -> None:
    from tritonpress_generator.build import build

    recipe, out = options.recipe, options.out
    built = build(recipe, out, data=options.data, work=_work(options), canary=options.canary, keep=options.keep)
    _print_built(built, recipe, out)
    switch_command.bring_up(options, built.manifest["workload"], built.folder.name)


def _print_built(built: Built, recipe: Path, out: Path) -> None:
    from tritonpress_generator import calibration_texts, sensitivity
    from tritonpress_generator.build import LATENCY_TOKENS
    from tritonpress_generator.plans import pending
    from tritonpress_generator.repository import size_bytes

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
    print(render(header, rows))
    for word, done in built.manifest["graph"].items():
        if "errors" in done:
            print(f"\n{word}: what each part costs\n{sensitivity.table(done)}\n")
    print(gate_line(built.manifest["gate"]))
    print(lengths_line(built.manifest["lengths"]))
    if line := calibration_texts.seen_line(built.manifest["calibration"]):
        print(line)
    if line := zeros_line(built.manifest):
        print(line)
    share = size_bytes(built.manifest) / first.size_bytes
    size = f"{size_bytes(built.manifest) / 1e6:.1f} MB, {share:.0%} of the checkpoint"
    print(f"wrote {os.fspath(built.folder)} and its steps, {size}")
    for name, reason in built.manifest["refused"].items():
        print(f"refused {name}: {reason}")
    if scripts := pending.missing(out, built.manifest):
        print("the times of its precisions are ONNX Runtime's on this CPU")
    for script in scripts:
        print(f"plan pending: on a machine with the GPU and Docker, run {os.fspath(script)} {os.fspath(recipe)}")


def _search(recipe: Path, out: Path, data: Path | None, work: Path) -> None:
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
    more = f" --data {os.fspath(data)}" if data else ""
    print(f"another point: tritonpress build {os.fspath(best.recipe)}{more} --work {os.fspath(work)}")


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
    from tritonpress_generator.training.distributed import world

    with world() as processes:
        report = distill(recipe, work, data, processes, out=out)
    if processes.writes:
        print(
            f"{report['metric']} on the held-out examples: {report['before']:.4f} before, {report['after']:.4f} after "
            f"{report['steps']} steps, {report['minutes']:g} min\n"
            f"its state is in {os.fspath(work)}, where build finds it (--work)"
        )


def _evaluate(options: argparse.Namespace) -> int:
    from tritonpress_client import TritonpressError

    from tritonpress_generator.evaluate import evaluate

    try:
        metrics = evaluate(
            options.recipe,
            options.target,
            dataset=options.dataset,
            data=options.data,
            work=_work(options),
            repository=options.repository,
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


def gate_line(gate: dict[str, Any]) -> str:
    """Returns what the gate has found, and how certain that is."""
    line = f"gate: {gate['metric']} {gate['served']:.4f}, limit {gate['limit']:.4f}"
    if gate["agreement"] is not None:
        line += f", agreement {gate['agreement']:.4f}"
    if gate["kept"] is None:
        return f"{line}: passed by the point estimate of {gate['examples']} examples"
    low, high = (f"{share:.1%}" for share in gate["kept"])
    sure = f"{gate['confidence']:.0%}"
    return f"{line}: passed; keeps {low} to {high} of FP32's, certain at {sure} with {gate['examples']} examples"


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


def zeros_line(manifest: dict[str, Any]) -> str | None:
    """Returns what zeros gain in the engine that was built, None where nothing was set to 0."""
    from tritonpress_generator import plugins

    done = manifest["passes"].get("sparsify")
    if done is None:
        return None
    engine = manifest["engine"]
    gains = done["pattern"] in plugins.find("engines", engine, path="engine").SPARSE
    what = "computes this pattern faster, with sparsity: true" if gains else "computes them all the same"
    return f"{done['zeros']:.1%} of the encoder's weights are 0: {engine} {what}"


def lengths_line(lengths: dict[str, Any]) -> str:
    """Returns how requests of different lengths share the engine, and what else was measured."""
    measured = lengths["measured"]
    line = f"lengths: {lengths['form']}, {lengths['padding']:.1%} of the computed tokens are padding"
    if not measured:
        return line
    figures = ", ".join(f"{form} {figure['texts_per_s']:.0f}" for form, figure in measured.items())
    return f"{line} (texts/s: {figures})"


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
