"""`tritonpress unpack FILE DIR` where nothing but the packing is: in a container that fetches a repository.

    python3 -m tritonpress_generator.packing FILE DIR [SHA256]

DIR is the container's own: Kubernetes runs it again in the same pod, as when the node has restarted, and what an
earlier run has left there gives way. With SHA256 no bundle but that one is unpacked.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

from tritonpress_generator.errors import GeneratorError, InputError
from tritonpress_generator.packing.unpack import Unpacked, unpack

_CHUNK = 1 << 20


def main(file: str, folder: str, sha256: str | None = None) -> int:
    """Returns the exit status of the command: 0 done, 2 the bundle or the folder is at fault."""
    try:
        if sha256 is not None:
            _check(Path(file), sha256)
        unpacked = _replace(Path(file), Path(folder))
    except GeneratorError as exc:
        print(f"unpack: {exc}", file=sys.stderr)
        return exc.exit_status
    print(f"wrote {folder}: {unpacked.files} files, each with its sha256")
    return 0


def _check(file: Path, sha256: str) -> None:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as source:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
    except OSError as exc:
        raise InputError(f"{file}: cannot be read ({exc}); copy the bundle to its place again") from exc
    if (found := digest.hexdigest()) != sha256:
        raise InputError(
            f"{file}: must be the bundle of sha256 {sha256}, has {found}; copy that one there, or deploy this one"
        )


def _replace(file: Path, folder: Path) -> Unpacked:
    """Returns what was unpacked, beside `folder` at first: what is there stays until all of the bundle is."""
    work = folder.with_name(f".{folder.name}.new")
    try:
        if work.exists():  # of a run that was killed
            shutil.rmtree(work)
        work.mkdir()
        unpacked = unpack(file, work / "tree")
        if folder.exists():
            shutil.rmtree(folder)
        (work / "tree").rename(folder)
    except OSError as exc:
        raise InputError(f"{folder}: cannot be written ({exc}); make it writable, and make room") from exc
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return unpacked


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
