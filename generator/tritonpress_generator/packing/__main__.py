"""`tritonpress unpack FILE DIR` where nothing but the packing is: in a container that fetches a repository."""

from __future__ import annotations

import sys
from pathlib import Path

from tritonpress_generator.errors import GeneratorError
from tritonpress_generator.packing.unpack import unpack


def main(file: str, folder: str) -> int:
    """Returns the exit status of the command: 0 done, 2 the bundle or the folder is at fault."""
    try:
        unpacked = unpack(Path(file), Path(folder))
    except GeneratorError as exc:
        print(f"unpack: {exc}", file=sys.stderr)
        return exc.exit_status
    print(f"wrote {folder}: {unpacked.files} files, each with its sha256")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
