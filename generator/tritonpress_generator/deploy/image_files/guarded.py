"""Becomes a command in which a file's token stands where a place is kept for it: `guarded.py FILE COMMAND...`.

tritonserver takes the token that it asks for on its command line alone; so the image and the manifests, which others
may read, have the place, and the secret that is mounted has the token. Status 2 and a line where there is none: what
should be guarded is not started open.
"""

import os
import re
import sys
from pathlib import Path
from typing import NoReturn

PLACE = "@TOKEN@"
TOKEN = re.compile(r"[\w.~-]{16,}", re.ASCII)


def main(file: str, *command: str) -> None:
    """Returns only if it cannot become the command."""
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        _refuse(f"{file}: must be the admin token's file, cannot be read: {error}; mount the secret (docs/deploy.md)")
    if not TOKEN.fullmatch(token):
        _refuse(f"{file}: must hold one token of 16 or more letters, digits and -._~; make one: openssl rand -hex 32")
    os.execvp(command[0], [word.replace(PLACE, token) for word in command])


def _refuse(said: str) -> NoReturn:
    print(said, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main(*sys.argv[1:])
