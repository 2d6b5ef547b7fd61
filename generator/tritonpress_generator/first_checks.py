"""What a person may get wrong in a command that takes a recipe, said before what computes is imported.

That takes seconds. First comes what can be said of the recipe as it is written, of the arguments, and of the files and
folders that both name; then the settings of what the recipe's words name, whose files are imported for that.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from tritonpress_generator import builds, checkpoint, records, repository, workplace
from tritonpress_generator import recipe as recipes
from tritonpress_generator.errors import InputError
from tritonpress_generator.recipe_text import RecipeText
from tritonpress_generator.search.settings import results_of
from tritonpress_generator.training.settings import BOARD, STATE, TRAINING

IN_PROCESS = ("torch", "onnx", "engine")
"""What `evaluate` runs by itself; any other target is a server."""

_FILES_OF_TASKS = {
    "classification": ("calibration_dataset",),
    "question_answering": ("null_dataset",),
    "recommendation": ("catalogue",),
}
"""Settings of tasks that name files; one that is not here is missed later, when the task reads it."""


def check(options: argparse.Namespace) -> None:
    """Refuses a recipe or arguments that the command would refuse later.

    Raises:
        InputError: See the command.
    """
    written = recipes.written(options.recipe)
    _check_arguments(options, written)
    _check_files(options, written)
    recipes.load(options.recipe)


def _check_arguments(options: argparse.Namespace, written: RecipeText) -> None:
    """Refuses arguments that are wrong, or do not go with the recipe."""
    command, path = options.command, options.recipe
    if command in ("build", "search"):
        repository.check_writable(options.out)
    elif command != "evaluate" and options.out is not None:
        check_out(command, options.out)
    if command == "build" and options.canary:
        repository.check_canary(options.out, written.name)
    if command == "evaluate":
        check_target(options.target, dataset=options.dataset, repository=options.repository, canary=options.canary)
        if options.repository is not None:
            ensemble = builds.asked(options.repository, written.name, of_canary=options.canary)
            repository.read_manifest(options.repository, ensemble)
    words = [recipes.divided(stage, where=str(path))[0] for stage in written.passes]
    if command == "distill":
        check_distills(words, path=path)
        if options.out is not None and options.out.resolve() == options.work.resolve():
            raise InputError(f"--out {options.out}: must not be --work, where the training's states lie; give another")
    if command == "search":
        check_search(path, options.work)
    elif _applies(options) and "distill" in words:
        check_work(options.work)
    if options.data is not None:
        check_data(options.data)


def _check_files(options: argparse.Namespace, written: RecipeText) -> None:
    """Refuses files and folders that are not there."""
    command, path = options.command, options.recipe
    folder = path.parent / written.folder
    if command in ("search", "finetune", "distill"):
        recipes.labelled(written.data, path=path).check_files(options.data or folder)
    if command != "finetune":
        dataset = options.dataset if command == "evaluate" else None
        records.check_readable((dataset or folder / written.gate.dataset).resolve())
        task, settings = recipes.divided(written.task, where=str(path))
        for name in _FILES_OF_TASKS.get(task, ()):
            file = settings.get(name) if isinstance(settings, dict) else None
            if file and isinstance(file, str):
                records.check_readable((folder / file).resolve())
    if command == "search" or _applies(options):
        _check_corpora(written, options.data or folder, path=path)
        _check_restored(written, folder, path=path)
    if command in ("build", "search") and written.serve.samples is not None:
        records.check_readable((folder / written.serve.samples).resolve())
    if command != "evaluate" or options.target in IN_PROCESS:
        # What is trained has no adapter yet.
        alone = {"adapter": None} if command == "finetune" else {}
        checkpoint.check_place(written.checkpoint.model_copy(update=alone), base=folder)


def _applies(options: argparse.Namespace) -> bool:
    """Returns whether the command applies the recipe's passes."""
    evaluated = options.command == "evaluate" and options.target in ("onnx", "engine")
    return evaluated or options.command in ("build", "distill")


def _check_corpora(written: RecipeText, folder: Path, *, path: Path) -> None:
    """Refuses a vocabulary's corpus that is not there; one that is no list of names is refused with the settings."""
    for i, stage in enumerate(written.passes):
        word, settings = recipes.divided(stage, where=str(path))
        vocabulary = settings.get("vocabulary") if word == "crop" and isinstance(settings, dict) else None
        corpus = vocabulary.get("corpus") if isinstance(vocabulary, dict) else None
        for file in corpus if isinstance(corpus, list) else ():
            if isinstance(file, str) and not (folder / file).is_file():
                raise InputError(
                    f"{path}: passes[{i}].crop: vocabulary: {folder} must have the file {file}, has not; give its "
                    "folder with --data"
                )


def _check_restored(written: RecipeText, folder: Path, *, path: Path) -> None:
    """Refuses a folder to restore that is not there; what it has in it, the pass reads."""
    for i, stage in enumerate(written.passes):
        word, settings = recipes.divided(stage, where=str(path))
        restored = settings.get("folder") if word == "restore" and isinstance(settings, dict) else None
        if isinstance(restored, str) and not (folder / restored / checkpoint.CUTS).is_file():
            raise InputError(
                f"{path}: passes[{i}].restore: folder: {folder / restored} must have the file {checkpoint.CUTS}, has "
                "not; give a folder that tritonpress distill --out has written"
            )


def check_data(data: Path) -> None:
    """Refuses what is no folder of data files."""
    if not data.is_dir():
        raise InputError(f"--data {data}: must be the folder of the data files, is none; correct the path")


def check_search(recipe: Path, work: Path | None) -> None:
    """Refuses a search that could not write what it has found, or not keep it until then."""
    target = results_of(recipe)
    remedy = "the recipes of the points are written there; move what is in the way, or the recipe"
    workplace.check_writable(target, what=str(target), remedy=remedy)
    if work is not None:
        check_work(work)


def check_work(work: Path) -> None:
    """Refuses a place for states that cannot be written."""
    workplace.check_writable(work, what=f"--work {work}", remedy="give another")


def check_out(command: str, out: Path) -> None:
    """Refuses a place for what `finetune` or `distill` writes that cannot be written, or where that overwrites others.

    Args:
        command: Of both.
        out: The folder; one of an earlier run, whole or killed, is gone on with.

    Raises:
        InputError: See there.
    """
    workplace.check_writable(out, what=f"--out {out}", remedy="give another")
    if out.is_dir() and any(out.iterdir()) and not _has_run(command, out):
        raise InputError(
            f"--out {out}: must be a new folder, or one of an earlier {command}, has other files; give another"
        )


def _has_run(command: str, out: Path) -> bool:
    """Returns whether the command has written into the folder before."""
    if command == "distill":
        return (out / checkpoint.CUTS).is_file()
    training = out / TRAINING
    names = {path.name for path in training.iterdir()} if training.is_dir() else {""}
    return all(name.startswith((STATE, BOARD, ".seen-")) for name in names)


def check_target(target: str, *, dataset: Path | None, repository: Path | None, canary: bool) -> None:
    """Refuses what `evaluate` cannot ask, or not together."""
    if repository is not None and (dataset is not None or target in IN_PROCESS):
        raise InputError(
            "--repository: gates a server on the gate's own data; give --target HOST:PORT, and no --dataset"
        )
    if canary and target in IN_PROCESS:
        raise InputError("--canary: is asked of a server; give --target HOST:PORT")
    if target not in IN_PROCESS and ":" not in target:
        raise InputError(f"--target: must be {', '.join(IN_PROCESS)} or HOST:PORT of a server, got {target!r}")


def check_distills(words: Iterable[str], *, path: Path) -> None:
    """Refuses passes of the recipe `path` without a `distill`."""
    if "distill" not in words:
        raise InputError(f"{path}: passes: must have distill to be distilled; add it behind what it is to mend")
