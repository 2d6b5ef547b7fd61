"""Hostile files to what reads them: each is refused in one line, or taken; nothing else may happen.

    python docs/fuzz_files.py model_repo [--count 10000 --seed 0]
    python docs/fuzz_files.py model_repo recipes repositories bundles cuts scenarios requests results

Recipes, repositories (manifests, configs, links in place of files), bundles, cuts of models, scenarios with their
queries, files of requests and results of runs are changed in their structure, their text and their bytes, and given to
the functions that the commands call.
A failure is an error of another class than the documented one, a message of several lines or of more than 2,000
characters, 5 s of CPU time or 60 s in all, 2 GiB of memory, a file that is written outside of the case's folder, a
process or a connection. `--only N` repeats one case, and shows where it failed. Ends with 1 if anything did.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hostile_cuts
import hostile_files
import hostile_load_files
from hostile_files import ROOT, Kind

KINDS = hostile_files.KINDS | hostile_cuts.KINDS | hostile_load_files.KINDS
CPU_S, WALL_S = 5.0, 60.0
MEMORY_BYTES = 2 << 30
MESSAGE = 2_000
"""Characters of a message; one of 2,000 is long, and still fits a terminal."""
_PATHS: dict[str, tuple[int, ...]] = {
    "os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.link": (1,), "os.symlink": (1,),
    "os.chmod": (0,), "os.truncate": (0,), "shutil.rmtree": (0,),
}  # fmt: skip
_FOLLOWING = ("open", "os.chmod", "os.truncate")
"""Events that a link leads elsewhere; the others are of the link itself."""
_FORBIDDEN = {
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
}
_WRITING = 0o1 | 0o2 | 0o100 | 0o1000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC."""


class _TooSlowError(BaseException):
    """A case has taken longer than it may."""


class _OutsideError(BaseException):
    """Something was done that no reader of a file may do."""


@dataclass
class Found:
    """What cases came to."""

    seen: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def fuzz(kind: Kind, cases: range, seed: int, work: Path, *, show: bool = False) -> Found:
    """Returns what a kind's cases came to.

    Args:
        kind: What is changed, and what reads it.
        cases: Their numbers.
        seed: With a case's number it fixes the case.
        work: An empty folder.
        show: Whether tracebacks are printed.
    """
    found = Found()
    with _guarded(work) as allow:
        for number in cases:
            chance = random.Random(f"{kind.name} {seed} {number}")
            with tempfile.TemporaryDirectory(dir=work) as folder:
                for what, call in kind.case(chance, Path(folder)):
                    outcome = _outcome(call, kind, allow, Path(folder), found, f"{kind.name} {number} {what}", show)
                    found.seen[f"{what} {outcome}"] += 1
    return found


def _outcome(
    call: Callable[[], object],
    kind: Kind,
    allow: Callable[[Path | None], None],
    folder: Path,
    found: Found,
    where: str,
    show: bool,
) -> str:
    """Returns the outcome of a call: `taken`, an error's class, or `FAILED`, which is noted."""
    try:
        allow(folder)
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        signal.setitimer(signal.ITIMER_REAL, WALL_S)
        try:
            call()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            allow(None)
    except kind.errors as exc:
        said = str(exc)
        if "\n" in said or len(said) > MESSAGE:
            found.failures.append(f"{where}: a message of {said.count(chr(10)) + 1} lines, {len(said)} characters")
        elif show:
            print(f"{where}: {type(exc).__name__}: {said}")
        return type(exc).__name__
    except BaseException as exc:  # whatever it is, it is what is looked for
        if isinstance(exc, KeyboardInterrupt):
            raise
        last = traceback.extract_tb(exc.__traceback__)
        ours = [frame for frame in last if ROOT.as_posix() in frame.filename and "/docs/" not in frame.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        found.failures.append(f"{where}: {type(exc).__name__}: {str(exc)[:120]!r} at {place}")
        if show:
            traceback.print_exc()
        return "FAILED"
    return "taken"


@contextmanager
def _guarded(work: Path) -> Iterator[Callable[[Path | None], None]]:
    """Yields what says where files may be written (None: anywhere), while time and memory are bounded."""
    allowed: list[Path | None] = [None]
    over = [False]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        folder = allowed[0]
        if folder is None or over[0]:
            return
        if event in _FORBIDDEN:
            raise _OutsideError(f"{event} {arguments!r:.200}")
        places = _PATHS.get(event, ())
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            places = (0,)
        for place in places:
            path = arguments[place]
            # What is removed by a folder's descriptor has a name alone, whose folder was held before.
            absolute = isinstance(path, str | Path) and str(path).startswith("/")
            if absolute and not _touched(event, Path(path)).is_relative_to(folder.resolve()):
                raise _OutsideError(f"{event} {path!r:.200}")

    def too_slow(number: int, frame: object) -> None:
        raise _TooSlowError(f"more than {CPU_S:g} s of CPU time" if number == signal.SIGPROF else f"{WALL_S:g} s")

    sys.addaudithook(watch)  # stays for the process's life, and sees nothing after this
    handlers = {number: signal.signal(number, too_slow) for number in (signal.SIGPROF, signal.SIGALRM)}
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space_bytes() + MEMORY_BYTES, limits[1]))
    bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield lambda folder: allowed.__setitem__(0, folder)
    finally:
        over[0] = True
        sys.dont_write_bytecode = bytecode
        resource.setrlimit(resource.RLIMIT_AS, limits)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _touched(event: str, path: Path) -> Path:
    """Returns what an event touches, free of links: the last part is followed only by what opens, cuts or marks it."""
    if event in _FOLLOWING:
        return Path(os.path.realpath(path))
    return Path(os.path.realpath(path.parent)) / path.name


def _address_space_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def main() -> int:
    """Runs the cases, prints what came of them, and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path)
    parser.add_argument("kinds", nargs="*", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--count", type=int, default=10_000, help="cases of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="this case alone")
    arguments = parser.parse_args()
    cases = range(arguments.count) if arguments.only is None else range(arguments.only, arguments.only + 1)
    failed = False
    for name in arguments.kinds:
        if name not in KINDS:
            parser.error(f"KIND must be one of {', '.join(KINDS)}, got {name!r}")
        # In memory: the cases are many and small, and what they write is synchronised.
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="tritonpress-fuzz-") as work:
            kind = KINDS[name](arguments.repository)
            began = time.perf_counter()
            found = fuzz(kind, cases, arguments.seed, Path(work), show=arguments.only is not None)
        seconds = time.perf_counter() - began
        print(f"{name}: {len(cases)} cases in {seconds:.0f} s: {dict(sorted(found.seen.items()))}", flush=True)
        for failure in found.failures[:40]:
            print(f"  {failure}", file=sys.stderr)
        failed |= bool(found.failures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
