"""Steps that note what they execute, and wait before it for as long as a file is there, however slow the machine is.

A process that is stopped would do for a second at most: then Triton takes it for dead. What a client sees of the order
is that in which its threads and sockets woke; the notes are in the order of the executions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tritonpress_generator import repository
from tritonpress_server.runtime import OUR_BACKENDS

MODEL = """
import importlib.util
import json
import sys
import time
from pathlib import Path

AS_BUILT = Path({as_built!r})
sys.path.insert(0, str(AS_BUILT.parent))
spec = importlib.util.spec_from_file_location("as_built", AS_BUILT)
as_built = importlib.util.module_from_spec(spec)
spec.loader.exec_module(as_built)


class TritonPythonModel(as_built.TritonPythonModel):
    def initialize(self, args):
        # Triton names this file where the config names none.
        config = json.loads(args["model_config"]) | {{"default_model_filename": ""}}
        self.instance = args["model_instance_name"]
        super().initialize(args | {{"model_config": json.dumps(config)}})

    def execute(self, requests):
        with open({executions!r}, "a") as file:
            file.write(json.dumps([{step!r}, self.instance, [request.request_id() for request in requests]]) + "\\n")
        while Path({held!r}).exists():
            time.sleep(0.005)
        return super().execute(requests)
"""


def make_holdable(repo: Path, step: str) -> None:
    """Lets a built step wait while `held_file` is there; nothing else of its config is changed."""
    folder = repo / step
    model, as_built = folder / "1" / "model.py", folder / "1" / "as_built.py"
    config = repository.read_config(folder)
    if config.backend == "python":
        model.rename(as_built)
    else:
        as_built = OUR_BACKENDS / (config.backend or config.platform.split("_")[0]) / "model.py"
        config.backend, config.platform = "python", ""
        (folder / "config.pbtxt").write_text(repository.config_text(config))
    files = {"held": held_file(repo, step), "executions": executions_file(repo)}
    model.write_text(
        MODEL.format(as_built=str(as_built), step=step, **{name: str(file) for name, file in files.items()})
    )


def held_file(repo: Path, step: str) -> Path:
    return repo.parent / f"{step}.held"


def executions_file(repo: Path) -> Path:
    return repo.parent / "executions"


class Execution(NamedTuple):
    """What an instance of a step executes together."""

    step: str
    instance: str
    requests: list[str]
    """Their ids."""


def executions(repo: Path) -> list[Execution]:
    """What the holdable steps have begun, in that order; one that is held is the last of its instance."""
    file = executions_file(repo)
    return [Execution(*json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


@contextmanager
def held_until(repo: Path, step: str, so_far: Callable[[], bool]) -> Iterator[None]:
    """Lets the step begin nothing until `so_far` says so, at most 60 s; what was begun before ends.

    That `so_far` failed, or never said so where the body has not ended before, is raised behind the body.
    """
    held = held_file(repo, step)
    held.touch()

    def watch() -> None:
        end = time.monotonic() + 60
        try:
            while held.exists() and not so_far():
                assert time.monotonic() < end, f"{step} was held for 60 s, and what is waited for did not come"
                time.sleep(0.02)
        finally:
            held.unlink(missing_ok=True)

    with ThreadPoolExecutor(1) as pool:
        watched = pool.submit(watch)
        try:
            yield
        finally:
            held.unlink(missing_ok=True)
    watched.result()
