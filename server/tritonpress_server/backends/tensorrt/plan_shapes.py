"""Which executions the requests of a dynamic batch become: arithmetic on shapes alone.

Of the profiles that hold an execution's shapes the one whose opt shapes are the nearest is taken, in the sum of the
dimensions' distances, as NVIDIA's backend does (github.com/triton-inference-server/tensorrt_backend).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import EllipsisType

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""By the input's name, the batch's dimension included."""
Items = tuple[tuple[str, Shape], ...]
"""The same, as a key."""
Choice = tuple[int, int | None, Shapes]
"""The number of a profile, the place of a graph if there is one, and the shapes as executed."""
REMEMBERED = 4096


@dataclass(frozen=True)
class Profile:
    """An optimization profile of a plan: bounds of the inputs' shapes, and those that its kernels were chosen for."""

    number: int
    least: Shapes
    opt: Shapes
    most: Shapes

    def why_not(self, shapes: Shapes) -> str | None:
        """Why the profile does not hold inputs of `shapes`; None where it does."""
        for name, shape in shapes.items():
            least, most = self.least[name], self.most[name]
            if len(shape) != len(least):
                return f"input {name!r} must have {len(least)} dimensions, got {list(shape)}"
            for place, (low, size, high) in enumerate(zip(least, shape, most, strict=True)):
                if not low <= size <= high:
                    return (
                        f"input {name!r} must have from {low} to {high} elements in dimension {place} by optimization "
                        f"profile {self.number}, got {size} of shape {list(shape)}"
                    )
        return None

    def distance(self, shapes: Shapes) -> int:
        """How far `shapes`, which the profile holds, are from its opt shapes."""
        return sum(
            abs(size - opt) for name, shape in shapes.items() for size, opt in zip(shape, self.opt[name], strict=True)
        )


@dataclass(frozen=True)
class Graph:
    """A CUDA graph of one profile's context."""

    profile: int
    shapes: Shapes
    least_batch: int | None = None
    """The smallest batch that is padded to the graph's; None: none is padded."""

    def takes(self, shapes: Shapes) -> bool:
        """Whether an execution of `shapes` is one of the graph's, its batch padded or not.

        Only the batch is ever padded: a row that is longer than its request's would answer with more than was asked.
        """
        if self.shapes == shapes:
            return True
        return (
            self.least_batch is not None
            and all(shape[1:] == self.shapes[name][1:] for name, shape in shapes.items())
            and all(self.least_batch <= shape[0] <= self.shapes[name][0] for name, shape in shapes.items())
        )


@dataclass(frozen=True)
class Run:
    """One execution."""

    profile: int
    graph: int | None
    """Its place among the planner's graphs."""
    shapes: Shapes
    """As executed: the batch is the graph's."""
    requests: tuple[int, ...]
    """The places of the requests that it answers."""
    rows: tuple[slice | EllipsisType, ...]
    """The rows of inputs and outputs that each of them has."""


class Planner:
    """What an instance can run, and from it the runs that requests become."""

    def __init__(self, profiles: Sequence[Profile], graphs: Sequence[Graph], batches: bool) -> None:
        """Plans for what is given.

        Args:
            profiles: The instance's.
            graphs: Those that were captured.
            batches: Whether the first dimension is the batch's (`max_batch_size` above 0).
        """
        self.profiles, self.graphs, self.batches = tuple(profiles), tuple(graphs), batches
        # Most executions have had their shapes before; those that clients think of may be any number.
        self._choice = lru_cache(maxsize=REMEMBERED)(self._choose)

    def plan(self, requests: Sequence[Shapes]) -> tuple[list[Run], dict[int, str]]:
        """The runs that answer `requests`, and why others are refused, by place.

        Requests of one shape share a run as long as a profile holds it. What is refused is so for its own shapes,
        whatever it came with.
        """
        refused: dict[int, str] = {}
        groups: dict[object, list[_Group]] = {}
        for place, shapes in enumerate(requests):
            choice = self._choice(tuple(shapes.items()))
            if isinstance(choice, str):
                refused[place] = choice
                continue
            if not self.batches:
                groups[place] = [_Group(choice, [place])]
                continue
            key = tuple((name, shape[1:]) for name, shape in shapes.items())
            # All inputs of a request have its batch size.
            rows = next(iter(shapes.values()))[0]
            group = groups.setdefault(key, [])
            joined = self._choice(_items(shapes, group[-1].rows + rows)) if group else choice
            if not group or isinstance(joined, str):
                group.append(_Group(choice))
            else:
                group[-1].choice = joined
            group[-1].add(place, rows)
        return [group.run(batches=self.batches) for same in groups.values() for group in same], refused

    def _choose(self, items: Items) -> Choice | str:
        """What an execution takes; or why no profile holds it."""
        shapes = dict(items)
        reasons = [profile.why_not(shapes) for profile in self.profiles]
        holding = [profile for profile, why in zip(self.profiles, reasons, strict=True) if why is None]
        if not holding:
            return self._refusal(shapes, [why for why in reasons if why])
        profile = min(holding, key=lambda one: (one.distance(shapes), one.number)).number
        taking = [
            place
            for place, graph in enumerate(self.graphs)
            if graph.profile == profile and (graph.takes(shapes) if self.batches else graph.shapes == shapes)
        ]
        # They differ in the batch alone.
        graph = min(taking, key=lambda place: tuple(self.graphs[place].shapes.values()), default=None)
        return profile, graph, shapes if graph is None else self.graphs[graph].shapes

    def _refusal(self, shapes: Shapes, reasons: Sequence[str]) -> str:
        if len(reasons) == 1:
            return reasons[0]
        numbers = ", ".join(str(profile.number) for profile in self.profiles)
        asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        return f"no optimization profile among {numbers} holds {asked}; the last: {reasons[-1]}"


def bytes_needed(profiles: Sequence[Profile], item_bytes: Mapping[str, int]) -> dict[str, int]:
    """The bytes of each input's buffer, for the largest shape of any of `profiles`."""
    return {
        name: max(math.prod(profile.most[name]) for profile in profiles) * size for name, size in item_bytes.items()
    }


@dataclass
class _Group:
    """Requests that one execution will answer."""

    choice: Choice
    """Of all of them together."""
    places: list[int] = field(default_factory=list)
    rows: int = 0
    _slices: list[slice] = field(default_factory=list)

    def add(self, place: int, rows: int) -> None:
        """Puts the rows of a request behind those that are there."""
        self.places.append(place)
        self._slices.append(slice(self.rows, self.rows + rows))
        self.rows += rows

    def run(self, *, batches: bool) -> Run:
        """The execution."""
        return Run(*self.choice, tuple(self.places), tuple(self._slices) if batches else (...,))


def _items(shapes: Shapes, batch: int) -> Items:
    return tuple((name, (batch, *shape[1:])) for name, shape in shapes.items())
