"""Builds of the tests' tiny encoder, for faults while files are written: they do all that a build does, in seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fault_lab import Lab
from tritonpress_generator import builds, repository

TINY = "recommendation"
_TESTS = Path(__file__).parents[1] / "tests"


def recipes(lab: Lab) -> tuple[Path, Path]:
    """Returns the recipes of two builds of the tiny workload, of which every step differs."""
    folder = lab.folder / "sources"
    if not folder.exists():
        sys.path.append(str(_TESTS))
        import tiny_builds
        import tiny_sources
        from transformers.utils import logging

        logging.disable_progress_bar()

        tiny_sources.write_checkpoint(folder / "checkpoint")
        tiny_sources.write_jsonl(folder / "catalogue.jsonl", tiny_sources.items())
        tiny_sources.write_jsonl(folder / "queries.jsonl", tiny_sources.queries())
        tiny_sources.write_recipe(folder)
        tiny_builds.write_other_sources(folder, lab.folder / "others")
    return folder / "recipe.yaml", lab.folder / "others" / "recipe.yaml"


def check_whole(lab: Lab, model_repo: Path, served: str, when: str) -> None:
    """Notes what is not as it must be; prints nothing where all is well."""
    manifest = repository.read_manifest(model_repo, TINY)
    problems = repository.changed_files(model_repo, manifest)
    if problems or manifest["build"] != served:
        lab.promise(False, f"{when}: build {served} is whole, but {problems or manifest['build']}")


def check_litter(lab: Lab, model_repo: Path) -> None:
    """Nothing lies there that no manifest names, and nothing half written."""
    named = {step for manifest in builds.manifests(model_repo, TINY).values() for step in manifest["steps"].values()}
    lies = {path.name for path in model_repo.iterdir()} - {TINY}
    half = [path.name for path in model_repo.rglob(".*")] + [path.name for path in model_repo.rglob("*.new")]
    litter = [*(lies ^ named), *half]
    lab.promise(not litter, f"no litter is left{f', but {litter}' if litter else ''}")


def in_a_process(
    work: Callable[[], object], log: Path, *, kill_s: float | None = None, keeps_output: bool = False
) -> int:
    """Returns the exit status of `work` in a process of its own, which has all imported that this one has.

    Args:
        work: What is done.
        log: Gets what it prints.
        kill_s: After how long it is killed.
        keeps_output: Whether it prints where this process does.
    """
    sys.stdout.flush()
    child = os.fork()
    if not child:
        _as_a_command(work, log, keeps_output=keeps_output)
    if kill_s is not None:
        time.sleep(kill_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _as_a_command(work: Callable[[], object], log: Path, *, keeps_output: bool) -> None:
    """Ends this process with what `work` returns."""
    status = 70
    with contextlib.suppress(SystemExit):
        try:
            if not keeps_output:
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(output, 1)
                os.dup2(output, 2)
            status = int(work() or 0)  # type: ignore[call-overload]
        finally:
            if sys.exc_info()[0] is not None:
                sys.excepthook(*sys.exc_info())
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def last_line(log: Path) -> str:
    """Returns what a command has said last, if anything."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
