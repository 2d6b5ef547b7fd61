"""Which models of a repository belong to builds that rest: they lie there for a rollback, and nobody asks them."""

import contextlib
import json
import re
from pathlib import Path

_QUOTED = re.compile(r'"([^"\\]+)"')


def files(repository: Path, pattern: str) -> list[Path]:
    """The files of a repository that fit a pattern, sorted: a pipe or a device in the place of one is passed over."""
    return [path for path in sorted(repository.glob(pattern)) if path.is_file()]


def resting(repository: Path) -> set[str]:
    """Returns the steps, by the manifests of the generator, that no served model names in its config.

    An ensemble names its steps; a step names in its parameters those that it calls by itself.
    """
    steps: set[str] = set()
    for path in files(repository, "*/manifest.*.json"):
        # What cannot be read hides nothing: Triton then loads all there is.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            steps |= set(json.loads(path.read_text(encoding="utf-8"))["steps"].values())
    named = {
        path.parent.name: set(_QUOTED.findall(path.read_text(encoding="utf-8", errors="replace")))
        for path in files(repository, "*/config.pbtxt")
    }
    served = set(named) - steps
    asked = list(served)
    while asked:
        found = (named[asked.pop()] & set(named)) - served
        served |= found
        asked += found
    return steps - served
