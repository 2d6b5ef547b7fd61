"""Builds that are killed, at each stage and amid their writing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fault_builds import TINY, check_litter, check_whole, in_a_process, last_line, recipes
from fault_lab import Lab, Load, judge
from tritonpress_generator import build, builds, cli, repository
from tritonpress_generator.progress import Progress
from tritonpress_server import TritonServer

_EVENTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "open"}
"""What Python says before it changes names in a folder."""
_SEED = 0


def build_killed(lab: Lab) -> None:
    """A build is killed; what served goes on serving, and the next build leaves nothing of it."""
    old, new = recipes(lab)
    tempfile.tempdir = str(lab.folder / "tmp")
    Path(tempfile.tempdir).mkdir()
    model_repo = lab.folder / "model_repo"
    in_a_process(lambda: cli.main(["build", str(old), "--out", str(model_repo)]), lab.folder / "log")
    pristine = Path(shutil.copytree(model_repo, lab.folder / "pristine"))
    began = time.monotonic()
    stages = _stages(new, model_repo, lab)
    seconds = time.monotonic() - began
    done = 0
    for number in range(stages):
        _restore(pristine, model_repo)
        in_a_process(lambda: build.build(new, model_repo, progress=_Killing(number)), lab.folder / "log")  # noqa: B023
        done += _check_killed(lab, model_repo, pristine, f"at stage {number}")
    lab.say(f"killed at each of {stages} stages")
    chance = random.Random(_SEED)
    for _ in range(4):
        _restore(pristine, model_repo)
        after = chance.uniform(0, seconds)
        in_a_process(lambda: cli.main(["build", str(new), "--out", str(model_repo)]), lab.folder / "log", kill_s=after)
        done += _check_killed(lab, model_repo, pristine, f"after {after:.1f} s")
    lab.say(f"killed at 4 moments of the {seconds:.1f} s that a build takes")
    done += _killed_while_writing(lab, new, model_repo, pristine)
    lab.say(f"{done} of all kills came after the switch")
    _serve_and_build_again(lab, new, model_repo)


def _stages(recipe: Path, model_repo: Path, lab: Lab) -> int:
    """Returns how many stages a build of `recipe` has."""
    counting = _Killing(-1)
    copy = Path(shutil.copytree(model_repo, lab.folder / "counted"))
    count = lab.folder / "stages"

    def run() -> None:
        build.build(recipe, copy, progress=counting)
        count.write_text(str(counting.seen), encoding="utf-8")

    in_a_process(run, lab.folder / "log")
    shutil.rmtree(copy)
    return int(count.read_text(encoding="utf-8"))


class _Killing(Progress):
    """Ends its own process by SIGKILL as a stage begins."""

    def __init__(self, number: int) -> None:
        super().__init__(shown=False)
        self._number, self.seen = number, 0

    def stage(self, name: str) -> None:
        if self.seen == self._number:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen += 1


def _killed_while_writing(lab: Lab, recipe: Path, model_repo: Path, pristine: Path) -> int:
    """Returns how many kills came after the switch, of one at each third touch of the repository.

    All that is written has been computed before: it is written again and again, each time by another process. The last
    is killed amid its writing, so that what it leaves can be served and built upon.
    """
    write, counted = repository.write, lab.folder / "kills"

    def again_and_again(*arguments: object, **options: object) -> Path:
        kills = done = 0
        for allowed in range(0, 3_000, 3):
            _restore(pristine, model_repo)
            if not _killed(lambda: write(*arguments, **options), str(model_repo), allowed):  # type: ignore[arg-type]
                break
            kills += 1
            done += _check_killed(lab, model_repo, pristine, f"at touch {allowed}")
        _restore(pristine, model_repo)
        _killed(lambda: write(*arguments, **options), str(model_repo), allowed // 2)  # type: ignore[arg-type]
        counted.write_text(f"{kills} {done} {len(lab.broken)}", encoding="utf-8")
        os._exit(0)

    def run() -> None:
        repository.write = again_and_again
        build.build(recipe, model_repo, progress=Progress(shown=False))

    in_a_process(run, lab.folder / "log", keeps_output=True)
    kills, done, broken = map(int, counted.read_text(encoding="utf-8").split())
    lab.say(f"killed at {kills} touches of the repository")
    lab.promise(kills > 10 and broken <= len(lab.broken), "it was whole after each of them")
    half = sorted(path.name for path in model_repo.rglob(".*"))
    lab.promise(bool(half), f"the last has left something, for the next build to remove: {', '.join(half)}")
    return done


def _killed(work: Callable[[], object], folder: str, allowed: int) -> bool:
    """Returns whether `work`, in a process of its own, was killed: it is at its touch of `folder` after `allowed`."""
    child = os.fork()
    if not child:
        sys.addaudithook(_killer(folder, allowed))
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _killer(folder: str, left: int) -> Callable[[str, tuple[object, ...]], None]:
    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _EVENTS and folder in str(arguments[:2]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return watch


def _check_killed(lab: Lab, model_repo: Path, pristine: Path, when: str) -> bool:
    """Returns whether the new build serves already; holds what lies there to the manifests."""
    now = builds.served(model_repo, TINY)
    check_whole(lab, model_repo, now, when)
    return now != builds.served(pristine, TINY)


def _serve_and_build_again(lab: Lab, recipe: Path, model_repo: Path) -> None:
    """Serves what a kill has left, and builds upon it."""
    with TritonServer(model_repo, models=[TINY]) as server:
        load = Load(server.grpc_url, model_repo, TINY)
        with load.by(2):
            answered = load.wait_for_answers(20, 20)
        lab.promise(answered is not None, "what a kill has left is served")
        judge(lab, load)
    status = in_a_process(lambda: cli.main(["build", str(recipe), "--out", str(model_repo)]), lab.folder / "log")
    lab.promise(status == 0, f"the next build is made {last_line(lab.folder / 'log') if status else ''}")
    check_whole(lab, model_repo, builds.served(model_repo, TINY), "after the next build")
    check_litter(lab, model_repo)
    left = sorted(path.name for path in Path(tempfile.gettempdir()).iterdir())
    lab.promise(not left, f"the next build leaves nothing in TMPDIR{f', but {left}' if left else ''}")


def _restore(pristine: Path, model_repo: Path) -> None:
    shutil.rmtree(model_repo)
    shutil.copytree(pristine, model_repo)
