"""Answers from the ensemble that a `question_answering` recipe builds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tritonpress_client.errors import InvalidInputError
from tritonpress_client.many import Progress
from tritonpress_client.model_client import Contract, ModelClient, Row, checked_list, encoded
from tritonpress_client.modes import Asynchronous, Blocking, both


@dataclass(frozen=True)
class Answer:
    """A passage of the context that answers the question, or that there is none."""

    text: str
    """`context[start:end]`; empty where the context holds no answer."""
    score: float
    """The model's probability."""
    start: int
    """Where the passage begins in the context, in characters (code points); 0 where there is none."""
    end: int
    """Where it ends, the first character after it; 0 where there is none."""

    @property
    def found(self) -> bool:
        """Whether the context holds an answer."""
        return bool(self.text)


class _QuestionAnswering(ModelClient):
    _contract = Contract(
        "question_answering",
        inputs=("QUESTION", "CONTEXT"),
        outputs=("ANSWER", "SCORE", "START", "END"),
        width="n_best",
    )

    @both
    async def ask(self, question: str, context: str) -> Answer:
        """Returns the best answer that the context holds; its `found` says whether there is one.

        Args:
            question: What is asked.
            context: Where the answer is looked for.

        Raises:
            InvalidInputError: A text is empty or cannot be encoded, or the server refuses.
            TritonpressError: See `tritonpress_client.errors`.
        """
        return _answers(await self._one(_encoded_pair(question, context), 1, "n"))[0]

    @both
    async def answers(self, question: str, context: str, n: int | None = None) -> list[Answer]:
        """Returns the answers that the context holds, best first.

        That there is none may be among them, with its probability, if the model has learnt to say so.

        Args:
            question: As for `ask`.
            context: As for `ask`.
            n: The most answers, 1 to `n_best`; `n_best` by default. There are fewer where the context holds fewer.

        Raises:
            InvalidInputError: A text is empty or cannot be encoded, `n` is out of range, or the server refuses.
            TritonpressError: See `tritonpress_client.errors`.
        """
        return _given(await self._one(_encoded_pair(question, context), n, "n"))

    @both
    async def ask_many(self, pairs: Sequence[tuple[str, str]], *, progress: Progress | None = None) -> list[Answer]:
        """Returns the best answer to each question, in the pairs' order.

        The pairs travel in batches that the model takes, each a request with a deadline of its own.

        Args:
            pairs: At least one question with its context, each as for `ask`.
            progress: Told how many pairs are done, and of how many.

        Raises:
            InvalidInputError: A pair is at fault; nothing is sent if that can be seen here.
            PartialFailureError: Some pairs have failed; it has the others' answers.
            TritonpressError: See `tritonpress_client.errors`.
        """
        return await self._many(list(_encoded_pairs(pairs)), 1, ("pairs", "n"), lambda row: _answers(row)[0], progress)

    @both
    async def answers_many(
        self, pairs: Sequence[tuple[str, str]], n: int | None = None, *, progress: Progress | None = None
    ) -> list[list[Answer]]:
        """Returns the answers to each question, best first, in the pairs' order.

        Args:
            pairs: As for `ask_many`.
            n: As for `answers`.
            progress: As for `ask_many`.

        Raises:
            InvalidInputError: A pair or `n` is at fault; nothing is sent if that can be seen here.
            PartialFailureError: Some pairs have failed; it has the others' answers.
            TritonpressError: See `tritonpress_client.errors`.
        """
        return await self._many(list(_encoded_pairs(pairs)), n, ("pairs", "n"), _given, progress)


class QuestionAnswering(_QuestionAnswering, Blocking):
    """Asks a question-answering model; arguments and errors as `ModelClient`."""


class AsyncQuestionAnswering(_QuestionAnswering, Asynchronous):
    """The same, awaited."""


def _answers(row: Row) -> list[Answer]:
    return [Answer(text.decode(), score, start, end) for text, score, start, end in zip(*row, strict=True)]


def _given(row: Row) -> list[Answer]:
    """Returns the answers without what fills up the model's row."""
    return [answer for answer in _answers(row) if answer.found or answer.score]


def _encoded_pairs(pairs: Any) -> Iterator[tuple[bytes, bytes]]:
    for index, pair in enumerate(checked_list(pairs, "pairs", of="(question, context)")):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            got = f"{len(pair)} values" if isinstance(pair, tuple | list) else type(pair).__name__
            raise InvalidInputError(f"`pairs[{index}]` must be (question, context), got {got}")
        yield _encoded_pair(pair[0], pair[1], of=f"pairs[{index}].")


def _encoded_pair(question: Any, context: Any, of: str = "") -> tuple[bytes, bytes]:
    return encoded(question, f"{of}question"), encoded(context, f"{of}context")
