"""Question answering: the part of a context that answers a question, or that none does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator import squad
from tritonpress_generator.answering import Answers, asked, make_encoder
from tritonpress_generator.checkpoint import Checkpoint
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.recipe_text import Settings
from tritonpress_generator.scores import Scorer, means
from tritonpress_generator.signature import Output, Signature
from tritonpress_generator.squad import Question
from tritonpress_generator.steps.question_answering.postprocessor import Postprocessor

if TYPE_CHECKING:
    from tritonpress_generator.task_head import TokenHead

METRICS = ("f1", "exact_match")
"""The first is what reports show; higher is better for both. In percent, as SQuAD gives them."""
MOST = 100.0
"""What an example scores at most, by any of them."""
CALIBRATES_ON = "gate.dataset"
"""The recipe's key that names `Data.calibration`, which is taken where the recipe names no other texts."""
AUTO_CLASS = "AutoModelForQuestionAnswering"
ENCODER = "pair_encoder"
WINDOWS = True
"""Whether a text may have several sequences."""
INPUTS = ("QUESTION", "CONTEXT")


class Config(Settings):
    n_best: int = Field(default=1, ge=1, le=100)
    """How many answers a question gets, best first."""
    max_answer_length: int = Field(default=30, ge=1, le=512)
    """The most tokens of an answer."""
    doc_stride: int = Field(default=128, ge=0)
    """How many tokens neighbouring windows of a long context share."""
    max_question_length: int = Field(default=64, ge=1)
    """The most tokens of a question; what is beyond is cut, or refused if `serve.too_long` says so."""
    max_question_bytes: int = Field(default=4096, ge=1, le=1 << 20)
    """A longer question is refused."""
    max_context_bytes: int = Field(default=1 << 18, ge=1, le=1 << 26)
    """A longer context is refused; shorter ones are read whole, in as many windows as it takes."""
    null_threshold: float | None = None
    """How far the score of "no answer" must be above that of the best span for it."""
    null_dataset: str | None = None
    """Questions with and without an answer, of SQuAD v2.0's form, relative to the recipe, on which that threshold is
    chosen. Default of both: what was chosen when the checkpoint was trained (its `tritonpress.json`), else there is no
    threshold, and a span is always answered."""


@dataclass(frozen=True)
class Data:
    """The recipe's labelled questions, read and checked."""

    questions: Sequence[Question]
    held_out: Sequence[Question]
    """On which the threshold of no answer is chosen."""

    @property
    def inputs(self) -> dict[str, list[str]]:
        """What is asked to measure the metrics."""
        return texts_of(self.questions)

    samples = inputs
    calibration = inputs


def texts_of(questions: Sequence[Question]) -> dict[str, list[str]]:
    """Returns the public inputs of `questions`."""
    return {
        "QUESTION": [question.question for question in questions],
        "CONTEXT": [question.context for question in questions],
    }


def load_data(recipe: Recipe) -> Data:
    """Returns the data that `recipe` names.

    Raises:
        InputError: A file is missing or wrong, or a window has no room for a context.
    """
    config: Config = recipe.task.config
    check_room(config, recipe.serve.max_length, where=f"{recipe.path}: serve.max_length")
    held_out = squad.load(recipe.file(config.null_dataset)) if config.null_dataset else []
    return Data(squad.load(recipe.file(recipe.gate.dataset), labelled=recipe.gate.labelled), held_out)


def check_room(config: Config, max_length: int, *, where: str) -> None:
    """Refuses windows in which a long question leaves less room than neighbouring windows share."""
    least = config.max_question_length + config.doc_stride + 8  # special tokens, and a step forward
    if max_length < least:
        raise InputError(
            f"{where} must be at least {least} (task.question_answering.max_question_length "
            f"{config.max_question_length} + doc_stride {config.doc_stride} + 8), got {max_length}; raise it"
        )


def encoder_settings(recipe: Recipe, signature: Signature) -> dict[str, Any]:
    """Returns the settings of the encoder of the public inputs."""
    config: Config = recipe.task.config
    return {
        "max_length": recipe.serve.max_length,
        "doc_stride": config.doc_stride,
        "max_question_length": config.max_question_length,
        "too_long": recipe.serve.too_long,
        "max_question_bytes": config.max_question_bytes,
        "max_context_bytes": config.max_context_bytes,
        "segments": signature.segments,
    }


def head(model: Any, checkpoint: Checkpoint, config: Config) -> tuple[TokenHead, Signature]:
    """Returns the model to export, and what it reads and gives."""
    from tritonpress_generator.task_head import TokenHead
    from tritonpress_generator.token_states import reads_segments

    divided = TokenHead(model, lambda answer: (answer.start_logits, answer.end_logits)).eval()
    divided.check(model)
    outputs = {"start": Output.per_token(), "end": Output.per_token()}
    return divided, Signature(outputs, segments=reads_segments(divided.encoder))


def postprocessor(
    recipe: Recipe, infer: Infer, signature: Signature, tokenizer: Tokenizer, data: Data, checkpoint: Checkpoint
) -> Postprocessor:
    """Returns what makes answers of the model's outputs."""
    config: Config = recipe.task.config
    threshold = config.null_threshold
    if threshold is None and data.held_out:
        threshold = chosen_threshold(data.held_out, *best_spans(recipe, infer, signature, tokenizer, data.held_out))
    if threshold is None:
        threshold = checkpoint.chosen.get("null_threshold")
    return Postprocessor(n_best=config.n_best, max_answer_length=config.max_answer_length, null_threshold=threshold)


def best_spans(
    recipe: Recipe, infer: Infer, signature: Signature, tokenizer: Tokenizer, questions: Sequence[Question]
) -> tuple[list[str], NDArray[np.float32]]:
    """Returns the best span for each question, and how far no answer is above it, FP32 `(questions,)`."""
    answering = Postprocessor(n_best=1, max_answer_length=recipe.task.config.max_answer_length, null_threshold=None)

    def spans(outputs: Mapping[str, Array], pieces: Mapping[str, Array], texts: Mapping[str, Array]) -> Answers:
        margins = answering.no_answer_margins(outputs, pieces)
        return {"ANSWER": answering(outputs, pieces, texts)["ANSWER"], "MARGIN": margins}

    given = asked(infer, signature, make_encoder(recipe, signature, tokenizer), spans)(texts_of(questions))
    return [answer.decode() for answer in given["ANSWER"][:, 0]], given["MARGIN"]


def chosen_threshold(
    questions: Sequence[Question], answers: Sequence[str], margins: NDArray[np.float32]
) -> float | None:
    """Returns the threshold of no answer with the highest F1 on `questions`, None where all of them have an answer."""
    return None if all(question.answers for question in questions) else best_threshold(questions, answers, margins)


def scorer(data: Data, answers: Answers) -> Scorer:
    """Returns SQuAD's metrics of the best answers."""
    return means(squad.evaluate(data.questions, [answer.decode() for answer in answers["ANSWER"][:, 0]]))


def agreement(data: Data, answers: Answers, others: Answers) -> NDArray[np.float64]:
    """Returns the F1 of each best answer with that of `others` as the gold one, `(questions,)`."""
    pairs = zip(answers["ANSWER"][:, 0], others["ANSWER"][:, 0], strict=True)
    return np.array([squad.f1(answer.decode(), other.decode()) for answer, other in pairs])


def best_threshold(questions: Sequence[Question], answers: Sequence[str], margins: NDArray[np.float32]) -> float:
    """Returns the threshold with the highest F1 on `questions`.

    Args:
        questions: With and without an answer.
        answers: The best span of each.
        margins: FP32 `(questions,)`, how far "no answer" is above that span.

    Source: `find_best_thresh` of SQuAD's evaluate-v2.0.py.
    """
    order = np.argsort(margins, kind="stable")
    # With the threshold below all margins, everything is "no answer"; raising it past one answers that question.
    gains = [squad.scores(questions[i], answers[i])[1] - squad.scores(questions[i], "")[1] for i in order]
    totals = np.concatenate([[0.0], np.cumsum(gains)])
    ordered = margins[order].astype(np.float64)
    borders = np.concatenate([[ordered[0] - 1], ordered, [ordered[-1] + 1]])
    # Between equal margins there is no room for a threshold.
    totals[borders[1:] <= borders[:-1]] = -np.inf
    best = int(np.argmax(totals))
    return float((borders[best] + borders[best + 1]) / 2)


def ensemble_inputs() -> list[pb.ModelInput]:
    """Returns the public inputs."""
    return [pb.ModelInput(name=name, data_type=pb.TYPE_STRING, dims=[1]) for name in INPUTS]


def ensemble_outputs(config: Config) -> list[pb.ModelOutput]:
    """Returns the public outputs."""
    types = {"ANSWER": pb.TYPE_STRING, "SCORE": pb.TYPE_FP32, "START": pb.TYPE_INT32, "END": pb.TYPE_INT32}
    return [pb.ModelOutput(name=name, data_type=kind, dims=[config.n_best]) for name, kind in types.items()]
