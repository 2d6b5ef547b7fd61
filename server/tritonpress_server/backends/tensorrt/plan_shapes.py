"""Which executions the requests of a dynamic batch become: arithmetic on shapes alone.

Of the profiles that hold an execution's shapes the one whose opt shapes are the nearest is taken, in the sum of the
dimensions' distances, as NVIDIA's backend does (github.com/triton-inference-server/tensorrt_backend).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""By the input's name, the batch's dimension included."""


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


@dataclass(frozen=True)
class Planner:
    """What an instance can run, and from it the runs that requests become."""

    profiles: Sequence[Profile]
    graphs: Sequence[Graph]
    batches: bool
    """Whether the first dimension is the batch's (`max_batch_size` above 0)."""

    def plan(self, requests: Sequence[Shapes]) -> tuple[list[Run], dict[int, str]]:
        """The runs that answer `requests`, and why others are refused, by place.

        Requests of one shape share a run as long as a profile holds it. What is refused is so for its own shapes,
        whatever it came with.
        """
        refused: dict[int, str] = {}
        groups: dict[object, list[list[int]]] = {}
        for place, shapes in enumerate(requests):
            if why := self._why_not(shapes):
                refused[place] = why
                continue
            key = tuple((name, shapes[name][1:]) for name in sorted(shapes)) if self.batches else place
            group = groups.setdefault(key, [[]])
            if group[-1] and not self._holding(self._joined([requests[other] for other in (*group[-1], place)])):
                group.append([])
            group[-1].append(place)
        return [self._run(places, requests) for group in groups.values() for places in group], refused

    def _run(self, places: Sequence[int], requests: Sequence[Shapes]) -> Run:
        shapes = self._joined([requests[place] for place in places])
        profile = min(self._holding(shapes), key=lambda one: (one.distance(shapes), one.number)).number
        rows: list[slice | EllipsisType] = [...]
        if self.batches:
            rows, end = [], 0
            for place in places:
                begin, end = end, end + _batch(requests[place])
                rows.append(slice(begin, end))
        taking = [
            place
            for place, graph in enumerate(self.graphs)
            if graph.profile == profile and (graph.takes(shapes) if self.batches else graph.shapes == shapes)
        ]
        # They differ in the batch alone.
        graph = min(taking, key=lambda place: tuple(self.graphs[place].shapes.values()), default=None)
        if graph is not None:
            shapes = self.graphs[graph].shapes
        return Run(profile, graph, shapes, tuple(places), tuple(rows))

    def _joined(self, requests: Sequence[Shapes]) -> Shapes:
        if len(requests) == 1:
            return dict(requests[0])
        return {name: (sum(shapes[name][0] for shapes in requests), *shape[1:]) for name, shape in requests[0].items()}

    def _holding(self, shapes: Shapes) -> list[Profile]:
        return [profile for profile in self.profiles if profile.why_not(shapes) is None]

    def _why_not(self, shapes: Shapes) -> str | None:
        reasons = [profile.why_not(shapes) for profile in self.profiles]
        if None in reasons:
            return None
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


def _batch(shapes: Shapes) -> int:
    # All inputs of a request have its batch size.
    return next(iter(shapes.values()))[0]
