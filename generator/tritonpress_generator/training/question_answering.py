"""Trains a span head: where an answer starts and ends, or, at the first token, that there is none."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import Tokenizer

from tritonpress_generator import squad
from tritonpress_generator.answering import Texts, encoded, make_encoder
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Infer
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.signature import Signature
from tritonpress_generator.squad import Answer, Question
from tritonpress_generator.steps.tokenizer.pair_encoder import PairEncoder
from tritonpress_generator.tasks import question_answering as task
from tritonpress_generator.training.settings import FinetuneConfig

if TYPE_CHECKING:
    import torch

    from tritonpress_generator.training.distributed import World
    from tritonpress_generator.training.loop import Feature

METRIC = task.METRICS[0]


class Config(FinetuneConfig):
    negatives: float = Field(default=0.0, ge=0, le=1)
    """For what share of the questions one more example is made that has no answer: the question beside another
    paragraph of its article. For data that has none of its own (SQuAD v1.1)."""


def load(paths: Sequence[Path], recipe: Recipe) -> list[Question]:
    """Returns the questions of all of `paths`.

    Raises:
        InputError: A file is missing or wrong, or an answer is not where it should be.
    """
    return [question for path in paths for question in squad.load(path)]


def texts(questions: Sequence[Question]) -> Texts:
    """Returns the public inputs of `questions`."""
    return task.texts_of(questions)


def augmented(questions: Sequence[Question], config: Config) -> list[Question]:
    """Returns the questions and the negatives that `config` asks for."""
    return [*questions, *_negatives(questions, config.negatives, config.seed)]


def check(
    examples: Sequence[Question],
    recipe: Recipe,
    signature: Signature,
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
) -> None:
    """Refuses examples that the model could not be scored on; `settings` are those of its config.

    Raises:
        InputError: A text cannot be served.
    """
    encoded(make_encoder(recipe, signature, tokenizer), task.texts_of(examples))


def deciding(examples: Sequence[Question], recipe: Recipe) -> Sequence[Question]:
    """Returns those of `examples` that decide which weights are the best.

    These are those with an answer: what separates the others from them is chosen in the end, if the recipe does not
    say it.

    Raises:
        InputError: There are none.
    """
    if recipe.task.config.null_threshold is not None:
        return examples
    answered = [question for question in examples if question.answers]
    if not answered:
        raise InputError(
            f"{recipe.path}: data.validation: must have a question with an answer, has {len(examples)} without; "
            "add some"
        )
    return answered


def as_served(
    examples: Sequence[Question], infer: Infer, signature: Signature, recipe: Recipe, tokenizer: Tokenizer
) -> Sequence[Question]:
    """Returns `examples`: of what is served, nothing is left to the original."""
    return examples


def model_settings(examples: Sequence[Question], recipe: Recipe) -> dict[str, Any]:
    """Returns what the model's config must say of the head."""
    return {"num_labels": 2}


def features(
    examples: Sequence[Question],
    recipe: Recipe,
    tokenizer: Tokenizer,
    signature: Signature,
    settings: Mapping[str, Any],
) -> list[Feature]:
    """Returns a feature a window; a window that has not the whole answer has none."""
    config: Config = recipe.finetune.config
    length = config.max_length or recipe.serve.max_length
    # Shorter windows share less of a context.
    shared = min(recipe.task.config.doc_stride, length // 4)
    fitting = recipe.task.config.model_copy(update={"doc_stride": shared})
    task.check_room(fitting, length, where=f"{recipe.path}: finetune.max_length")
    limits = task.encoder_settings(recipe, signature) | {"max_length": length, "doc_stride": shared}
    encoder = PairEncoder(Tokenizer.from_str(tokenizer.to_str()), **limits)
    sequences = encoded(encoder, task.texts_of(examples))
    question_of = [index for index, count in enumerate(sequences.counts) for _ in range(count)]
    made: list[Feature] = []
    for window, index in enumerate(question_of):
        spans = sequences.spans[window]
        start, end = _tokens(spans, examples[index].answers)
        feature = {
            "input_ids": sequences.ids[window],
            "attention_mask": [1] * len(sequences.ids[window]),
            "allowed": (spans[:, 0] >= 0).astype(int).tolist(),
            "start": start,
            "end": end,
        }
        made.append(feature | ({"token_type_ids": sequences.segments[window]} if sequences.segments else {}))
    return made


def outputs(model: Callable[..., Any], batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Returns the logits of start and end, FP32 `(batch, seq)`, of the context's tokens and the first alone."""
    inputs = [batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch]
    allowed = batch["allowed"].bool()
    allowed[:, 0] = True
    return tuple(logits.float().masked_fill(~allowed, float("-inf")) for logits in model(*inputs))


def outputs_as_served(
    outputs: tuple[torch.Tensor, ...], originals: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Returns `outputs`: of what is served, nothing is left to the original."""
    return outputs


def losses(outputs: tuple[torch.Tensor, ...], batch: dict[str, torch.Tensor], world: World) -> torch.Tensor:
    """Returns the mean cross-entropy of start and end, FP32 `(batch,)`."""
    import torch

    of_both = [
        torch.nn.functional.cross_entropy(logits, batch[name], reduction="none")
        for logits, name in zip(outputs, ("start", "end"), strict=True)
    ]
    return torch.stack(of_both).mean(0)


def distances(
    outputs: tuple[torch.Tensor, ...],
    others: tuple[torch.Tensor, ...],
    batch: dict[str, torch.Tensor],
    temperature: float,
) -> torch.Tensor:
    """Returns how far each window's starts and ends are from those of the model that is learnt from, FP32 `(batch,)`.

    Source: Hinton et al. 2015, "Distilling the knowledge in a neural network".
    """
    import torch

    from tritonpress_generator.training.distances import divergence

    pairs = zip(outputs, others, strict=True)
    of_both = [divergence(logits / temperature, wanted / temperature) for logits, wanted in pairs]
    return torch.stack(of_both).mean(0) * temperature**2


def answers(
    infer: Infer, signature: Signature, examples: Sequence[Question], recipe: Recipe, tokenizer: Tokenizer
) -> list[tuple[str, float]]:
    """Returns the best span for each of `examples`, and how far no answer is above it."""
    if not examples:
        return []
    spans, margins = task.best_spans(recipe, infer, signature, tokenizer, examples)
    return list(zip(spans, margins.tolist(), strict=True))


def judge(
    examples: Sequence[Question], answers: Sequence[tuple[str, float]], recipe: Recipe, settings: Mapping[str, Any]
) -> Callable[[NDArray[np.int64]], dict[str, float]]:
    """Returns what gives the metrics of answers on those of `examples` that it is asked for by their indices.

    `settings` are the model's, and what was chosen: without a threshold, a span is always answered.
    """
    threshold = recipe.task.config.null_threshold
    if threshold is None:
        threshold = settings.get("null_threshold")
    given = ["" if threshold is not None and margin > threshold else span for span, margin in answers]
    scores = 100 * np.array([squad.scores(question, answer) for question, answer in zip(examples, given, strict=True)])

    def metrics(rows: NDArray[np.int64]) -> dict[str, float]:
        exact_match, f1 = scores[rows].mean(0).tolist()
        return {"f1": f1, "exact_match": exact_match}

    return metrics


def chosen(
    examples: Sequence[Question], answers: Sequence[tuple[str, float]], recipe: Recipe, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the threshold of no answer that is chosen on the held-out examples, if any has none."""
    spans, margins = zip(*answers, strict=True)
    threshold = task.chosen_threshold(examples, spans, np.array(margins, np.float32))
    return {} if threshold is None else {"null_threshold": threshold}


def _negatives(questions: Sequence[Question], share: float, seed: int) -> list[Question]:
    """Returns `share` of the questions, each beside another paragraph of its article that has none of its answers."""
    paragraphs: dict[str, dict[str, None]] = defaultdict(dict)
    for question in questions:
        paragraphs[question.title][question.context] = None
    generator = np.random.default_rng(seed)
    made = []
    for index in generator.permutation(len(questions))[: round(share * len(questions))].tolist():
        question = questions[index]
        others = [
            context
            for context in paragraphs[question.title]
            if context != question.context and not any(answer.text in context for answer in question.answers)
        ]
        if others and question.answers:
            context = others[int(generator.integers(len(others)))]
            made.append(replace(question, question_id=f"{question.question_id}-none", context=context, answers=()))
    return made


def _tokens(spans: np.ndarray[Any, Any], answers: Sequence[Answer]) -> tuple[int, int]:
    """Returns the first and last token of the answer that most annotators gave, (0, 0) if it is not in the window."""
    if not answers:
        return 0, 0
    (text, first), _ = Counter((answer.text, answer.start) for answer in answers).most_common(1)[0]
    last = first + len(text)
    of_context = np.flatnonzero(spans[:, 0] >= 0)
    own = spans[of_context]
    if own[0, 0] > first or own[-1, 1] < last:
        return 0, 0
    start, end = int(np.searchsorted(own[:, 1], first, side="right")), int(np.searchsorted(own[:, 0], last)) - 1
    return (int(of_context[start]), int(of_context[end])) if start <= end else (0, 0)
