"""Faults while files are written: no room on the disk, and kill -9.

Builds are of the tests' tiny encoder: they do all that a build does, in seconds.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fault_lab import Lab, Load, fill, judge, small_disk
from tritonpress_generator import build, builds, cli, repository
from tritonpress_generator.packing.pack import pack
from tritonpress_generator.progress import Progress
from tritonpress_server import Settings, TritonServer

TINY = "recommendation"
_TESTS = Path(__file__).parents[1] / "tests"
_EVENTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "open"}
"""What Python says before it changes names in a folder."""
_DISK_KIB = 2048
_SEED = 0


def disk_full(lab: Lab) -> None:
    """There is no room left, at each place where something is written."""
    for fault in (_full_while_building, _full_while_unpacking, _full_while_promoting, _full_at_start, _full_in_service):
        print(f" {fault.__name__.strip('_').replace('_', ' ')}:", flush=True)
        fault(lab)


def _full_while_building(lab: Lab) -> None:
    old, new = _recipes(lab)
    with small_disk(lab.folder / "disk", f"{_DISK_KIB}k") as disk:
        model_repo = disk / "model_repo"
        _in_a_process(lambda: cli.main(["build", str(old), "--out", str(model_repo)]), lab.folder / "log")
        served, refused = builds.served(model_repo, TINY), 0
        for leave_kib in (0, 8, 32, 64, 128, 192):
            filler = fill(disk, leave_bytes=leave_kib << 10)
            status = _in_a_process(lambda: cli.main(["build", str(new), "--out", str(model_repo)]), lab.folder / "log")
            last = _last_line(lab.folder / "log")
            filler.unlink()
            if status == 0:
                break
            refused += 1
            if status != 2 or not last.startswith("tritonpress build: "):
                lab.promise(False, f"{leave_kib} KiB: one line and status 2, got {status}: {last}")
            _check_whole(lab, model_repo, served, f"{leave_kib} KiB left")
        lab.say(f"refused {refused} times, with up to {leave_kib} KiB left; at first: {last[-120:]}")
        status = _in_a_process(lambda: cli.main(["build", str(new), "--out", str(model_repo)]), lab.folder / "log")
        lab.promise(status == 0, f"once there is room it is built {_last_line(lab.folder / 'log') if status else ''}")
        _check_litter(lab, model_repo)


def _full_while_unpacking(lab: Lab) -> None:
    bundle = lab.folder / "bundle"
    pack(lab.repository, bundle)
    size = sum(path.stat().st_size for path in lab.repository.rglob("*") if path.is_file())
    # Room, as the file system says, but none for the files' names; and none at all.
    for what, kib, inodes in (("for half of it", size >> 11, 0), ("for names", 2 * size >> 10, 12)):
        with small_disk(lab.folder / "disk", f"{kib}k", inodes=inodes) as disk:
            status = _in_a_process(
                lambda: cli.main(["unpack", str(bundle), str(disk / "model_repo")]),
                lab.folder / "log",
            )
            last = _last_line(lab.folder / "log")
            lab.promise(
                status == 2 and last.startswith("tritonpress unpack: ") and not [*disk.iterdir()],
                f"no room {what}: refused in a line, nothing left ({status}: …{last[-90:]})",
            )


def _full_while_promoting(lab: Lab) -> None:
    old, new = _recipes(lab)
    with small_disk(lab.folder / "disk", f"{_DISK_KIB}k") as disk:
        model_repo = disk / "model_repo"
        for recipe, more in ((old, ()), (new, ("--canary",))):
            _in_a_process(lambda: cli.main(["build", str(recipe), "--out", str(model_repo), *more]), lab.folder / "log")  # noqa: B023
        served, refused = builds.served(model_repo, TINY), 0
        for leave_kib in (0, 4, 8, 16, 32, 64):
            filler = fill(disk, leave_bytes=leave_kib << 10)
            status = _in_a_process(lambda: cli.main(["promote", str(model_repo), TINY]), lab.folder / "log")
            filler.unlink()
            if status == 0:
                break
            refused += 1
            last = _last_line(lab.folder / "log")
            if status != 2 or not last.startswith("tritonpress promote: "):
                lab.promise(False, f"{leave_kib} KiB: one line and status 2, got {status}: {last}")
            now = builds.served(model_repo, TINY)
            _check_whole(lab, model_repo, now if now != served else served, f"{leave_kib} KiB left")
        status = _in_a_process(lambda: cli.main(["promote", str(model_repo), TINY]), lab.folder / "log")
        lab.promise(status == 0 and builds.served(model_repo, TINY) != served, "once there is room it is switched")
        lab.say(f"refused {refused} times")


def _full_at_start(lab: Lab) -> None:
    with small_disk(lab.folder / "disk", "64k") as disk:
        fill(disk, leave_bytes=8 << 10)
        command = [
            sys.executable,
            "-m",
            "tritonpress_server.cli",
            str(lab.repository),
            "--grpc-port=0",
            "--http-port=0",
        ]
        done = subprocess.run(
            [*command, "--metrics-port=0"], env={**os.environ, "TMPDIR": str(disk)}, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        said = done.stderr.strip()
        left = [path.name for path in disk.iterdir() if path.is_dir()]
        lab.promise(
            done.returncode in (1, 2) and said.startswith("tritonpress-serve: ") and not left,
            f"TMPDIR is full: the server says so ({done.returncode}: …{said[-120:]})",
        )


def _full_in_service(lab: Lab) -> None:
    with small_disk(lab.folder / "disk", "1m") as disk:
        settings = Settings(trace_file=str(disk / "trace.json"), trace_rate=1, log_verbose=1)
        with TritonServer(lab.repository, log_path=disk / "log", settings=settings) as server:
            load = Load(server.grpc_url, lab.repository, lab.name)
            with load.by(2):
                time.sleep(1)
                fill(disk, leave_bytes=0)
                lab.say(f"log and trace have {shutil.disk_usage(disk).free} bytes left")
                time.sleep(lab.seconds)
                lab.promise(load.wait_for_answers(5, 10) is not None, "requests are answered all the while")
            began = time.monotonic()
        lab.promise(time.monotonic() - began < 15, "the server stops as ever")
        judge(lab, load)


def build_killed(lab: Lab) -> None:
    """A build is killed; what served goes on serving, and the next build leaves nothing of it."""
    old, new = _recipes(lab)
    tempfile.tempdir = str(lab.folder / "tmp")
    Path(tempfile.tempdir).mkdir()
    model_repo = lab.folder / "model_repo"
    _in_a_process(lambda: cli.main(["build", str(old), "--out", str(model_repo)]), lab.folder / "log")
    pristine = Path(shutil.copytree(model_repo, lab.folder / "pristine"))
    began = time.monotonic()
    stages = _stages(new, model_repo, lab)
    seconds = time.monotonic() - began
    done = 0
    for number in range(stages):
        _restore(pristine, model_repo)
        _in_a_process(lambda: build.build(new, model_repo, progress=_Killing(number)), lab.folder / "log")  # noqa: B023
        done += _check_killed(lab, model_repo, pristine, f"at stage {number}")
    lab.say(f"killed at each of {stages} stages")
    chance = random.Random(_SEED)
    for _ in range(4):
        _restore(pristine, model_repo)
        after = chance.uniform(0, seconds)
        _in_a_process(lambda: cli.main(["build", str(new), "--out", str(model_repo)]), lab.folder / "log", kill_s=after)
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

    _in_a_process(run, lab.folder / "log")
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

    _in_a_process(run, lab.folder / "log", keeps_output=True)
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
    _check_whole(lab, model_repo, now, when)
    return now != builds.served(pristine, TINY)


def _check_whole(lab: Lab, model_repo: Path, served: str, when: str) -> None:
    """Notes what is not as it must be; prints nothing where all is well."""
    manifest = repository.read_manifest(model_repo, TINY)
    problems = repository.changed_files(model_repo, manifest)
    if problems or manifest["build"] != served:
        lab.promise(False, f"{when}: build {served} is whole, but {problems or manifest['build']}")


def _serve_and_build_again(lab: Lab, recipe: Path, model_repo: Path) -> None:
    """Serves what a kill has left, and builds upon it."""
    with TritonServer(model_repo, models=[TINY]) as server:
        load = Load(server.grpc_url, model_repo, TINY)
        with load.by(2):
            answered = load.wait_for_answers(20, 20)
        lab.promise(answered is not None, "what a kill has left is served")
        judge(lab, load)
    status = _in_a_process(lambda: cli.main(["build", str(recipe), "--out", str(model_repo)]), lab.folder / "log")
    lab.promise(status == 0, f"the next build is made {_last_line(lab.folder / 'log') if status else ''}")
    _check_whole(lab, model_repo, builds.served(model_repo, TINY), "after the next build")
    _check_litter(lab, model_repo)
    left = sorted(path.name for path in Path(tempfile.gettempdir()).iterdir())
    lab.promise(not left, f"the next build leaves nothing in TMPDIR{f', but {left}' if left else ''}")


def _check_litter(lab: Lab, model_repo: Path) -> None:
    """Nothing lies there that no manifest names, and nothing half written."""
    named = {step for manifest in builds.manifests(model_repo, TINY).values() for step in manifest["steps"].values()}
    lies = {path.name for path in model_repo.iterdir()} - {TINY}
    half = [path.name for path in model_repo.rglob(".*")] + [path.name for path in model_repo.rglob("*.new")]
    litter = [*(lies ^ named), *half]
    lab.promise(not litter, f"no litter is left{f', but {litter}' if litter else ''}")


def _recipes(lab: Lab) -> tuple[Path, Path]:
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


def _restore(pristine: Path, model_repo: Path) -> None:
    shutil.rmtree(model_repo)
    shutil.copytree(pristine, model_repo)


def _in_a_process(
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


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
