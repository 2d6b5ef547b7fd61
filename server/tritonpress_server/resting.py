"""Which models of a repository nobody has to ask for: those of builds that rest, and those that others bring along.

And which must be asked for beside those that were named.

Builds rest for a rollback. What an ensemble's config names, Triton loads with it, whatever that is by then.
"""

import contextlib
import json
import re
from collections.abc import Collection
from pathlib import Path

_QUOTED = re.compile(r'"([^"\\]+)"')
# Of a config it is the scheduling of an ensemble alone that has the key.
_SCHEDULED = re.compile(r'\bmodel_name\s*:\s*"([^"\\]+)"')


def files(repository: Path, pattern: str) -> list[Path]:
    """The files of a repository that fit a pattern, sorted: a pipe or a device in the place of one is passed over."""
    return [path for path in sorted(repository.glob(pattern)) if path.is_file()]


def resting(repository: Path) -> set[str]:
    """Returns the steps, by the manifests of the generator, that no served model names in its config.

    An ensemble names its steps; a step names in its parameters those that it calls by itself.
    """
    steps = _steps(repository)
    named = {name: set(_QUOTED.findall(config)) for name, config in _configs(repository).items()}
    served = set(named) - steps
    asked = list(served)
    while asked:
        found = (named[asked.pop()] & set(named)) - served
        served |= found
        asked += found
    return steps - served


def brought(repository: Path) -> set[str]:
    """Returns the steps, by the manifests of the generator, that an ensemble's config names.

    Not among them are those that a step alone calls, by its parameters (layout `scripting`).
    """
    scheduled = {name for config in _configs(repository).values() for name in _SCHEDULED.findall(config)}
    return _steps(repository) & scheduled


def called(repository: Path, models: Collection[str]) -> set[str]:
    """Returns the steps, by the manifests of the generator, without which `models` do not answer and which they do not
    bring along: those that a step calls, by its parameters (layout `scripting`)."""
    steps, configs = _steps(repository), _configs(repository)
    needed: set[str] = set()
    asked = list(models)
    while asked:
        found = set(_QUOTED.findall(configs.get(asked.pop(), ""))) & steps & set(configs) - needed
        needed |= found
        asked += found
    return needed - brought(repository) - set(models)


def _steps(repository: Path) -> set[str]:
    steps: set[str] = set()
    for path in files(repository, "*/manifest.*.json"):
        # What cannot be read hides nothing: Triton then loads all there is.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            steps |= set(json.loads(path.read_text(encoding="utf-8"))["steps"].values())
    return steps


def _configs(repository: Path) -> dict[str, str]:
    return {
        path.parent.name: path.read_text(encoding="utf-8", errors="replace")
        for path in files(repository, "*/config.pbtxt")
    }
