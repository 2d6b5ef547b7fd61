"""A recorded-call double of TensorRT's Python module, since no machine of the tests has a GPU.

It has the names of one release's bindings (`tensorrt_names.json`, read from the wheels by `tests/tensorrt_names.py`)
and no others, takes every call, and answers the few whose answer is used. It says which calls are made, and that each
exists; what TensorRT makes of them is seen on a GPU alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES: dict[str, dict[str, list[str]]] = json.loads(
    (Path(__file__).parent / "tensorrt_names.json").read_text(encoding="utf-8")
)
VERSIONS = list(NAMES)
Calls = list[tuple[str, tuple[Any, ...]]]
MADE = {
    "Builder.create_network": "INetworkDefinition",
    "Builder.create_builder_config": "IBuilderConfig",
    "Builder.create_optimization_profile": "IOptimizationProfile",
    "IBuilderConfig.create_timing_cache": "ITimingCache",
    "IBuilderConfig.get_timing_cache": "ITimingCache",
    "Runtime.deserialize_cuda_engine": "ICudaEngine",
    "ICudaEngine.create_engine_inspector": "EngineInspector",
    "ICudaEngine.create_execution_context": "IExecutionContext",
    "OnnxParser.get_error": "ParserError",
}
"""What a call gives, where that is no tensor."""


@dataclass
class Method:
    """An answer that is given the object's state first."""

    of: Callable[..., Any]


@dataclass
class Attribute:
    """An attribute that follows from the object's state."""

    of: Callable[[dict[str, Any]], Any]


class Recorded:
    """The module of one release."""

    def __init__(self, version: str, answers: dict[str, Any], calls: Calls | None = None) -> None:
        """Answers `answers`, by `Class.name`; attributes that are set are recorded as calls are.

        Args:
            version: The release.
            answers: A value, what a call gives, a `Method` or an `Attribute`.
            calls: Where calls are recorded; by default a list of its own.
        """
        self.__version__ = version
        self.answers = answers
        self.calls: Calls = [] if calls is None else calls
        self._names = NAMES[version]

    def __getattr__(self, name: str) -> Any:
        if name not in self._names[""]:
            raise AttributeError(f"TensorRT {self.__version__} has no {name}")
        members = self._names.get(name, [])
        if name == "ILogger":
            return type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2})
        if "value" in members and "name" in members:
            return Enumeration(name, [member for member in members if member not in {"name", "value"}])
        return lambda *arguments: _Thing(self, name, arguments)

    def made(self, call: str) -> list[tuple[Any, ...]]:
        """Returns the arguments of each `call`, as `Class.name`."""
        return [arguments for name, arguments in self.calls if name == call]


class Member(int):
    """A member of an enumeration, which has a name as pybind11's have."""

    name = ""


class Enumeration:
    """Numbers for members that are asked for by name."""

    def __init__(self, name: str, members: list[str]) -> None:
        self._name = name
        self._members = members

    def __getattr__(self, name: str) -> Member:
        if name not in self._members:
            raise AttributeError(f"{self._name} has no {name}")
        member = Member(self._members.index(name))
        member.name = name
        return member


class _Thing:
    """An object of one of the module's classes."""

    def __init__(self, module: Recorded, kind: str, arguments: tuple[Any, ...]) -> None:
        vars(self).update(_module=module, _kind=kind, _state={})
        module.calls.append((kind, arguments))

    def __getattr__(self, name: str) -> Any:
        key = self._known(name)
        answer = self._module.answers.get(key, lambda *_: _Thing(self._module, MADE.get(key, "ITensor"), ()))
        if isinstance(answer, Attribute):
            return answer.of(self._state)
        if not callable(answer) and not isinstance(answer, Method):
            return answer

        def call(*arguments: Any, **options: Any) -> Any:
            self._module.calls.append((key, (*arguments, *options.values())))
            return answer.of(self._state, *arguments) if isinstance(answer, Method) else answer(*arguments)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        self._module.calls.append((self._known(name), (value,)))

    def _known(self, name: str) -> str:
        if name not in NAMES[self._module.__version__][self._kind]:
            raise AttributeError(f"{self._kind} of TensorRT {self._module.__version__} has no {name}")
        return f"{self._kind}.{name}"
