"""What the clients of all tasks share: a model that speaks a contract, asked one by one or many at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from tritonpress_client import wire
from tritonpress_client.calls import Calls
from tritonpress_client.connection import close_at_exit, model_metadata
from tritonpress_client.errors import InvalidInputError
from tritonpress_client.many import Progress, ask_all
from tritonpress_client.metadata import ModelMetadata
from tritonpress_client.modes import both
from tritonpress_client.options import Options

Row = tuple[list[Any], ...]
"""For one element the values of each output, in the contract's order."""


@dataclass(frozen=True)
class Contract:
    """What a task's model speaks: inputs BYTES (batch, 1), and outputs (batch, n), the best first."""

    task: str
    """The task, after which the shipped recipes name the model."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    width: str
    """What n is called."""


@dataclass(frozen=True)
class Limits:
    """What a model takes and gives."""

    max_batch_size: int
    """The most elements in one request."""
    answers: int
    """The most answers to one element (`top_k`, `n_best`); −1 where the model's config does not say."""


class ModelClient:
    """A client of one model; one for all threads and tasks.

    Before its first request it reads the model's metadata, and refuses a model of another contract.

    Args:
        targets: As for `Connection`: `HOST:PORT` of Triton's gRPC endpoint, a list of them, or a name.
        model: The name of the ensemble; the task's by default.
        timeout_s: The deadline of each request in seconds, over all of its attempts.
        in_flight: The most requests that `…_many` has on their way at the same time.
        options: Security, retries, balancing, transport.

    Raises:
        InvalidInputError: An argument is out of range.
    """

    _contract: ClassVar[Contract]
    transport_class: Any

    def __init__(
        self,
        targets: str | Sequence[str],
        *,
        model: str | None = None,
        timeout_s: float = 5.0,
        in_flight: int = 8,
        options: Options | None = None,
    ) -> None:
        self.model = self._contract.task if model is None else model
        if not isinstance(self.model, str) or not self.model:
            raise InvalidInputError(f"`model` must be a model's name, got {model!r}")
        if isinstance(in_flight, bool) or not isinstance(in_flight, int) or in_flight < 1:
            raise InvalidInputError(f"`in_flight` must be an integer above 0, got {in_flight!r}")
        self._in_flight = in_flight
        self._calls = Calls(targets, self.transport_class(), timeout_s=timeout_s, options=options or Options())
        self._known: tuple[int, ModelMetadata] | None = None
        self._version = ""
        close_at_exit(self, self._calls)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._calls.address!r}, model={self.model!r})"

    @both
    async def limits(self) -> Limits:
        """Returns what the model takes and gives.

        A server is asked once, and again when one has come back, or an answer shows that another model is served.
        """
        return await self._limits(self._calls.deadline())

    async def _close(self) -> None:
        await self._calls.close()

    async def _limits(self, deadline: float) -> Limits:
        metadata = await self._metadata(deadline)
        return Limits(max(1, metadata.max_batch_size), self._width(metadata))

    def _width(self, metadata: ModelMetadata) -> int:
        return metadata.outputs[self._contract.outputs[0]].shape[-1]

    async def _one(self, element: tuple[bytes, ...], count: int | None, name: str) -> Row:
        """Returns the values for one element, at most `count` an output."""
        deadline = self._calls.deadline()
        await self._check_count(name, count, deadline)
        return (await self._infer([element], count, deadline))[0]

    async def _many(
        self,
        elements: Sequence[tuple[bytes, ...]],
        count: int | None,
        names: tuple[str, str],
        made: Callable[[Row], Any],
        progress: Progress | None,
    ) -> list[Any]:
        """Returns for each element what is `made` of its values.

        Args:
            elements: The inputs of each, in the contract's order.
            count: How many answers to each are wanted; None for all.
            names: What the caller calls the elements, and the count.
            made: Makes the public value of an element's values.
            progress: Called with the number of elements that are done, and of all.
        """
        deadline = self._calls.deadline()
        await self._check_count(names[1], count, deadline)
        return await ask_all(
            elements,
            lambda batch: self._infer(batch, count, self._calls.deadline()),
            made,
            calls=self._calls,
            model=self.model,
            name=names[0],
            inputs=self._contract.inputs,
            max_batch_size=(await self._limits(deadline)).max_batch_size,
            in_flight=self._in_flight,
            progress=progress,
        )

    async def _infer(self, batch: Sequence[tuple[bytes, ...]], count: int | None, deadline: float) -> list[Row]:
        contract = self._contract
        request = wire.infer_request(self.model, contract.outputs, self._calls.options.priority)
        for name, column in zip(contract.inputs, zip(*batch, strict=True), strict=True):
            wire.add_text(request, name, column)
        response = await self._calls.call("ModelInfer", request, model=self.model, deadline=deadline)
        try:
            rows = wire.rows(response, contract.outputs, len(batch), count)
        except ValueError as exc:
            raise wire.malformed(exc, target=self._calls.address, model=self.model) from exc
        self._compare(response)
        return rows

    def _compare(self, response: Any) -> None:
        """Forgets the metadata where the answer is of another version or build, which may have other limits."""
        width = next(tensor.shape[1] for tensor in response.outputs if tensor.name == self._contract.outputs[0])
        known, is_other = self._known, self._version not in ("", response.model_version)
        self._version = response.model_version
        if is_other or (known is not None and self._width(known[1]) not in (-1, width)):
            self._known = None

    async def _check_count(self, name: str, count: int | None, deadline: float) -> None:
        """Refuses a count of answers that the model cannot give; None is all that it gives."""
        known, metadata = self._known, await self._metadata(deadline)
        most = self._width(metadata)
        if count is None:
            return
        # True is an int to Python; nobody means it.
        is_integer = isinstance(count, int | np.integer) and not isinstance(count, bool)
        if is_integer and 0 <= most < count and known is not None and known[1] is metadata:
            # Known of old: another build may be served by now, and give more.
            self._known = None
            most = self._width(await self._metadata(deadline))
        if not is_integer or count < 1 or 0 <= most < count:
            limits = f"in 1..{most} (`{self._contract.width}` of model {self.model!r})" if most >= 0 else "above 0"
            message = f"`{name}` must be an integer {limits}, got {count!r}"
            raise InvalidInputError(message, target=self._calls.address, model=self.model)

    async def _metadata(self, deadline: float) -> ModelMetadata:
        generation = self._calls.balancer.generation
        if self._known is not None and self._known[0] == generation:
            return self._known[1]
        metadata, contract = await model_metadata(self._calls, self.model, deadline), self._contract
        if not (set(contract.inputs) <= set(metadata.inputs) and set(contract.outputs) <= set(metadata.outputs)):
            message = (
                f"model {self.model!r} at {self._calls.address} is not for {contract.task}: it takes"
                f" {', '.join(metadata.inputs)} and gives {', '.join(metadata.outputs)}; name one that takes"
                f" {', '.join(contract.inputs)} and gives {', '.join(contract.outputs)}"
            )
            raise InvalidInputError(message, target=self._calls.address, model=self.model)
        self._known = generation, metadata
        return metadata


def checked_list(values: Any, name: str, of: str) -> Sequence[Any]:
    """Returns the argument `name` if it is a list (or another sequence) that holds something; `of` says what."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InvalidInputError(f"`{name}` must be a list of {of}, got {type(values).__name__}")
    if not values:
        raise InvalidInputError(f"`{name}` is empty; give at least one")
    return values


def encoded(text: Any, name: str) -> bytes:
    """Returns the argument `name` in UTF-8, or refuses what no server could answer."""
    if not isinstance(text, str):
        raise InvalidInputError(f"`{name}` must be a str, got {type(text).__name__}")
    if not text.strip():
        raise InvalidInputError(f"`{name}` is empty; give it some text")
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        message = f"`{name}` cannot be encoded as UTF-8 ({exc.reason} at character {exc.start}); replace that character"
        raise InvalidInputError(message) from exc
