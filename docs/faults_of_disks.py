"""No room on the disk, at each place where something is written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

from fault_builds import TINY, check_litter, check_whole, in_a_process, last_line, recipes
from fault_lab import Lab, Load, fill, judge, small_disk
from tritonpress_generator import builds, cli
from tritonpress_generator.packing.pack import pack
from tritonpress_server import Settings, TritonServer

_DISK_KIB = 2048
_PAGE_KIB = 4


def disk_full(lab: Lab) -> None:
    """There is no room left, at each place where something is written."""
    for fault in (_full_while_building, _full_while_unpacking, _full_while_promoting, _full_at_start, _full_in_service):
        print(f" {fault.__name__.strip('_').replace('_', ' ')}:", flush=True)
        fault(lab)


def _full_while_building(lab: Lab) -> None:
    """The least room that is enough is searched, and a little less tried, so that late writings fail too."""
    old, new = recipes(lab)
    kept = lab.folder / "kept"
    in_a_process(lambda: cli.main(["build", str(old), "--out", str(kept)]), lab.folder / "log")
    served = builds.served(kept, TINY)
    said: dict[int, str] = {}
    with small_disk(lab.folder / "disk", f"{_DISK_KIB}k") as disk:
        model_repo = disk / "model_repo"

        def builds_with(leave_kib: int) -> bool:
            shutil.rmtree(model_repo, ignore_errors=True)
            shutil.copytree(kept, model_repo, symlinks=True)
            filler = fill(disk, leave_bytes=leave_kib << 10)
            status = in_a_process(lambda: cli.main(["build", str(new), "--out", str(model_repo)]), lab.folder / "log")
            filler.unlink()
            if status == 0:
                return True
            said[leave_kib] = last_line(lab.folder / "log")
            if status != 2 or not said[leave_kib].startswith("tritonpress build: "):
                lab.promise(False, f"{leave_kib} KiB: one line and status 2, got {status}: {said[leave_kib]}")
            check_whole(lab, model_repo, served, f"{leave_kib} KiB left")
            return False

        enough = _least(builds_with, _DISK_KIB // 2, step=_PAGE_KIB)
        for less in (8, 12, 16, 24, 40, 64):
            if less <= enough:
                builds_with(enough - less)
        lab.say(
            f"{enough} KiB are enough; refused {len(said)} times, with 0 to {max(said)} KiB; then: {said[max(said)]}"
        )
        status = in_a_process(lambda: cli.main(["build", str(new), "--out", str(model_repo)]), lab.folder / "log")
        lab.promise(status == 0, f"once there is room it is built {last_line(lab.folder / 'log') if status else ''}")
        check_litter(lab, model_repo)


def _least(suffices: Callable[[int], bool], most: int, *, step: int) -> int:
    """Returns the least multiple of `step` that suffices, where `most` does."""
    low, high = -1, most // step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle * step) else (middle, high)
    return high * step


def _full_while_unpacking(lab: Lab) -> None:
    bundle = lab.folder / "bundle"
    pack(lab.repository, bundle)
    size = sum(path.stat().st_size for path in lab.repository.rglob("*") if path.is_file())
    # Room, as the file system says, but none for the files' names; and none at all.
    for what, kib, inodes in (("for half of it", size >> 11, 0), ("for names", 2 * size >> 10, 12)):
        with small_disk(lab.folder / "disk", f"{kib}k", inodes=inodes) as disk:
            status = in_a_process(
                lambda: cli.main(["unpack", str(bundle), str(disk / "model_repo")]),
                lab.folder / "log",
            )
            last = last_line(lab.folder / "log")
            lab.promise(
                status == 2 and last.startswith("tritonpress unpack: ") and not [*disk.iterdir()],
                f"no room {what}: refused in a line, nothing left ({status}: …{last[-90:]})",
            )


def _full_while_promoting(lab: Lab) -> None:
    old, new = recipes(lab)
    with small_disk(lab.folder / "disk", f"{_DISK_KIB}k") as disk:
        model_repo = disk / "model_repo"
        for recipe, more in ((old, ()), (new, ("--canary",))):
            in_a_process(lambda: cli.main(["build", str(recipe), "--out", str(model_repo), *more]), lab.folder / "log")  # noqa: B023
        served, refused = builds.served(model_repo, TINY), 0
        for leave_kib in (0, 4, 8, 16, 32, 64):
            filler = fill(disk, leave_bytes=leave_kib << 10)
            status = in_a_process(lambda: cli.main(["promote", str(model_repo), TINY]), lab.folder / "log")
            filler.unlink()
            if status == 0:
                break
            refused += 1
            last = last_line(lab.folder / "log")
            if status != 2 or not last.startswith("tritonpress promote: "):
                lab.promise(False, f"{leave_kib} KiB: one line and status 2, got {status}: {last}")
            now = builds.served(model_repo, TINY)
            check_whole(lab, model_repo, now if now != served else served, f"{leave_kib} KiB left")
        status = in_a_process(lambda: cli.main(["promote", str(model_repo), TINY]), lab.folder / "log")
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
