"""What a user can ask for: a file each, named by the scenario's word, with the names that `Workload` lists."""

from __future__ import annotations

import importlib
import pkgutil
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

from tritonpress_client import Options

from tritonpress_loadtests.errors import ScenarioError
from tritonpress_loadtests.query_files import Reader


class Workload(Protocol):
    """The contract of a file in this folder."""

    READERS: dict[str, Reader]
    """How the queries' file is read, by its suffix."""
    INPUTS: dict[str, str]
    """The model's inputs, each with the query's key that it takes."""
    OUTPUTS: tuple[str, ...]
    """The outputs that are asked for."""

    def connect(self, url: str, *, model: str, timeout_s: float, options: Options) -> AbstractContextManager[Any]:
        """Returns a client of the model; nothing is sent yet."""

    def check(self, client: Any) -> None:
        """Asks the server whether the model is there and speaks this workload's contract; raises TritonpressError."""


def names() -> list[str]:
    """Returns the words that a scenario may use."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Workload:
    """Returns the workload of that name.

    Raises:
        ScenarioError: There is none.
    """
    if name not in names():
        raise ScenarioError(f"`workload` {name!r} is unknown; known: {', '.join(names())}")
    return cast(Workload, importlib.import_module(f"{__name__}.{name}"))
