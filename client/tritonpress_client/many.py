"""Many elements to one model: batches that it takes, a bounded number of requests on their way, answers in order.

Triton answers a request as a whole, so that one bad element refuses its batch. Its message says where it stands
(`TEXT[3] must have text`): that element fails, and the others are sent again. Where the message does not say, the batch
is divided until the bad ones stand alone.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from tritonpress_client.calls import Calls
from tritonpress_client.errors import (
    AccessDeniedError,
    InvalidInputError,
    ModelUnavailableError,
    PartialFailureError,
    ServerUnreachableError,
    TritonpressError,
    is_overloaded,
)

Progress = Callable[[int, int], None]
"""Told how many elements are done (answered or failed), and of how many; called in the caller's thread."""

Outcome = dict[int, Any]
"""By an element's index its value, or its error."""

# After these the others would fail as well, unless a queue was full, which is of the moment.
_HOPELESS = (AccessDeniedError, ModelUnavailableError, ServerUnreachableError)


async def ask_all(  # noqa: PLR0913
    elements: Sequence[tuple[bytes, ...]],
    infer: Callable[[Sequence[tuple[bytes, ...]]], Awaitable[Sequence[Any]]],
    made: Callable[[Any], Any],
    *,
    calls: Calls,
    model: str,
    name: str,
    inputs: Sequence[str],
    max_batch_size: int,
    in_flight: int,
    progress: Progress | None,
) -> list[Any]:
    """Returns for each element, in order, what is made of its answer.

    Args:
        elements: What is asked.
        infer: Answers a batch.
        made: Makes the value of an answer.
        calls: The connection's, whose transport runs the batches.
        model: The model's name, for messages.
        name: What the caller calls the elements, for messages.
        inputs: The model's inputs, by which its messages name an element.
        max_batch_size: The most elements in a request.
        in_flight: The most requests at a time.
        progress: Told of the elements that are done.

    Raises:
        PartialFailureError: Some have failed; the others' values are in it.
        TritonpressError: All have failed of one cause.
    """
    outcomes: Outcome = {}
    place = re.compile(rf"\b(?:{'|'.join(map(re.escape, inputs))})\[(\d+)\]")
    hopeless: list[TritonpressError] = []

    async def answered(batch: Sequence[int]) -> Outcome:
        outcome: Outcome = {}
        waiting = [batch]
        while waiting:
            indices = waiting.pop()
            if hopeless:
                outcome |= dict.fromkeys(indices, hopeless[0])
                continue
            try:
                rows = await infer([elements[index] for index in indices])
                outcome |= {index: made(row) for index, row in zip(indices, rows, strict=True)}
            except InvalidInputError as exc:
                found = place.search(str(exc))
                if len(indices) == 1:
                    outcome[indices[0]] = _at(exc, name, indices[0], len(elements))
                elif found is None or int(found[1]) >= len(indices):
                    half = len(indices) // 2
                    waiting += [indices[half:], indices[:half]]
                else:
                    bad = int(found[1])
                    # Alone it may be right: some are too much for a request only together.
                    waiting += [[*indices[:bad], *indices[bad + 1 :]], [indices[bad]]]
            except TritonpressError as exc:
                if isinstance(exc, _HOPELESS) and not is_overloaded(exc.__cause__):
                    hopeless.append(exc)
                outcome |= dict.fromkeys(indices, exc)
        return outcome

    def done(outcome: Outcome) -> None:
        outcomes.update(outcome)
        if progress is not None:
            progress(len(outcomes), len(elements))

    starts = range(0, len(elements), max_batch_size)
    batches = [range(start, min(start + max_batch_size, len(elements))) for start in starts]
    if len(batches) == 1:
        done(await answered(batches[0]))
    else:
        work = [lambda batch=batch: answered(batch) for batch in batches]
        await calls.transport.each(work, in_flight, done)
    failures = {index: outcomes[index] for index in sorted(outcomes) if isinstance(outcomes[index], TritonpressError)}
    if len(failures) == len(elements) and len({id(error) for error in failures.values()}) == 1:
        raise failures[0]
    results = [None if index in failures else outcomes[index] for index in range(len(elements))]
    if failures:
        raise PartialFailureError(name, results, failures)
    return results


def _at(error: InvalidInputError, name: str, index: int, count: int) -> InvalidInputError:
    """Returns the server's refusal with the place that the element has among all."""
    if count == 1:
        return error
    located = InvalidInputError(
        f"`{name}[{index}]`: {error}", target=error.target, model=error.model, attempts=error.attempts
    )
    located.__cause__ = error.__cause__
    return located
