"""What the clients of all tasks share: a model that speaks a contract, asked one by one or in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import numpy as np

from tritonpress_client.connection import Connection
from tritonpress_client.errors import InvalidInputError
from tritonpress_client.metadata import ModelMetadata

_Self = TypeVar("_Self", bound="ModelClient")


@dataclass(frozen=True)
class Contract:
    """What a task's model speaks: inputs BYTES (batch, 1), and outputs (batch, n), the best first."""

    task: str
    """The task, after which the shipped recipes name the model."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    width: str
    """What n is called."""


class ModelClient:
    """A client of one model; a context manager, safe to share between threads.

    Before its first request it reads the model's metadata, and refuses a model of another contract.

    Args:
        url: `HOST:PORT` of Triton's gRPC endpoint.
        model: The name of the ensemble; the task's by default.
        timeout_s: The deadline of each request in seconds.

    Raises:
        InvalidInputError: `url` or `timeout_s` is out of range.
    """

    _contract: ClassVar[Contract]

    def __init__(self, url: str, *, model: str | None = None, timeout_s: float = 5.0) -> None:
        self.model = self._contract.task if model is None else model
        self._connection = Connection(url, timeout_s=timeout_s)

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    @property
    def max_batch_size(self) -> int:
        """The most texts in one request (asks the server once)."""
        return max(1, self._metadata.max_batch_size)

    @property
    def _width(self) -> int:
        """How many answers the model gives to one text; -1 where its config does not say."""
        return self._metadata.outputs[self._contract.outputs[0]].shape[-1]

    def _infer(
        self, requests: Sequence[tuple[bytes, ...]], count: int | None, name: str
    ) -> list[tuple[list[Any], ...]]:
        """Returns for each request a list of at most `count` values an output, in the contract's order.

        Args:
            requests: The inputs of each, in the contract's order; they travel in batches of `max_batch_size`.
            count: How many of the model's answers are wanted, the best first; None for all.
            name: What the caller calls the requests, for messages.
        """
        rows: list[tuple[list[Any], ...]] = []
        for start in range(0, len(requests), self.max_batch_size):
            batch = requests[start : start + self.max_batch_size]
            try:
                rows += self._infer_batch(batch, count)
            except InvalidInputError as exc:
                if len(batch) == len(requests):
                    raise
                # The server counts from the batch's first text.
                message = f"in {name}[{start}:{start + len(batch)}], counted from {start}: {exc}"
                raise InvalidInputError(message, target=exc.target, model=exc.model) from exc
        return rows

    def _infer_batch(self, batch: Sequence[tuple[bytes, ...]], count: int | None) -> list[tuple[list[Any], ...]]:
        inputs = {
            key: np.array(column, dtype=object).reshape(-1, 1)  # (batch, 1) BYTES
            for key, column in zip(self._contract.inputs, zip(*batch, strict=True), strict=True)
        }
        outputs = self._connection.infer(self.model, inputs, self._contract.outputs)
        return list(zip(*(outputs[key][:, :count].tolist() for key in self._contract.outputs), strict=True))

    def _checked_count(self, name: str, count: int | None) -> int | None:
        """Returns how many answers the caller wants; None for all that the model gives."""
        if count is None:
            return None
        most = self._width
        # True is an int to Python; nobody means it.
        is_integer = isinstance(count, int | np.integer) and not isinstance(count, bool)
        if not is_integer or count < 1 or 0 <= most < count:
            limits = f"in 1..{most} (`{self._contract.width}` of model {self.model!r})" if most >= 0 else "above 0"
            message = f"`{name}` must be an integer {limits}, got {count!r}"
            raise InvalidInputError(message, target=self._connection.url, model=self.model)
        return int(count)

    @cached_property
    def _metadata(self) -> ModelMetadata:
        metadata = self._connection.model_metadata(self.model)
        contract = self._contract
        if not (set(contract.inputs) <= set(metadata.inputs) and set(contract.outputs) <= set(metadata.outputs)):
            message = (
                f"model {self.model!r} at {self._connection.url} is not for {contract.task}: it takes"
                f" {', '.join(metadata.inputs)} and gives {', '.join(metadata.outputs)}; name one that takes"
                f" {', '.join(contract.inputs)} and gives {', '.join(contract.outputs)}"
            )
            raise InvalidInputError(message, target=self._connection.url, model=self.model)
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
