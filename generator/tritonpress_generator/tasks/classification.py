"""Classification: a text to its label, or to any number of labels, with calibrated probabilities."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator import classification_metrics as measures
from tritonpress_generator import labelled_texts
from tritonpress_generator.answering import Answers, alone, encoded, make_encoder
from tritonpress_generator.checkpoint import Checkpoint
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Infer
from tritonpress_generator.labelled_texts import LabelledText
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.recipe_text import Settings
from tritonpress_generator.scores import Scorer
from tritonpress_generator.signature import Output, Signature
from tritonpress_generator.steps.classification.postprocessor import Postprocessor
from tritonpress_generator.steps.single.pipeline import Pipeline

if TYPE_CHECKING:
    from tritonpress_generator.task_head import SequenceHead

METRICS = ("accuracy", "macro_f1", "mcc")
"""The first is what reports show; higher is better for all."""
MOST = 1.0
"""What an example scores at most, by any of them."""
CALIBRATES_ON = "gate.dataset"
"""The recipe's key that names `Data.calibration`, which is taken where the recipe names no other texts."""
AUTO_CLASS = "AutoModelForSequenceClassification"
ENCODER = "text_encoder"
WINDOWS = False
"""Whether a text may have several sequences."""
INPUTS = ("TEXT",)
DECISION = 0.5
"""The probability from which a label of a multi-label task counts as answered."""


class Config(Settings):
    multi_label: bool = False
    """Whether a text may have any number of labels, each with a probability of its own."""
    labels: list[str] | None = Field(default=None, min_length=2)
    """The labels' names by the index of their logit; default: the checkpoint's (`id2label`)."""
    max_text_bytes: int = Field(default=8192, ge=1, le=1 << 20)
    """A longer text is refused; the default is far beyond what `max_length` tokens can hold."""
    temperature: float | None = Field(default=None, gt=0)
    """What logits are divided by, so that probabilities are calibrated."""
    calibration_dataset: str | None = None
    """Held-out labelled texts, relative to the recipe, on which the temperature is chosen. Default of both: what was
    chosen when the checkpoint was trained (its `tritonpress.json`), else 1."""


@dataclass(frozen=True)
class Data:
    """The recipe's labelled texts, read and checked."""

    rows: Sequence[LabelledText]
    held_out: Sequence[LabelledText]
    """On which the temperature is chosen."""
    multi_label: bool

    @property
    def inputs(self) -> dict[str, list[str]]:
        """What is asked, and what the gate asks."""
        return texts_of(self.rows)

    samples = inputs
    calibration = inputs


def texts_of(rows: Sequence[LabelledText]) -> dict[str, list[str]]:
    """Returns the public input of `rows`."""
    return {INPUTS[0]: [row.text for row in rows]}


def load_data(recipe: Recipe) -> Data:
    """Returns the data that `recipe` names.

    Raises:
        InputError: A file is missing or wrong.
    """
    config: Config = recipe.task.config
    multi_label, held_out = config.multi_label, config.calibration_dataset
    rows = labelled_texts.load(recipe.file(recipe.gate.dataset), multi_label=multi_label, labelled=recipe.gate.labelled)
    return Data(
        rows, labelled_texts.load(recipe.file(held_out), multi_label=multi_label) if held_out else [], multi_label
    )


def encoder_settings(recipe: Recipe, signature: Signature) -> dict[str, Any]:
    """Returns the settings of the encoder of the public input."""
    serve = recipe.serve
    return {
        "max_length": serve.max_length,
        "max_bytes": recipe.task.config.max_text_bytes,
        "too_long": serve.too_long,
    }


def head(model: Any, checkpoint: Checkpoint, config: Config) -> tuple[SequenceHead, Signature]:
    """Returns the model to export, and what it reads and gives."""
    from tritonpress_generator.task_head import SequenceHead

    divided = SequenceHead(model, lambda answer: answer.logits).eval()
    divided.check(model)
    return divided, Signature({"logits": Output(int(model.config.num_labels))})


def labels_of(model_settings: Mapping[str, Any], config: Config, *, logits: int | None, source: str) -> list[str]:
    """Returns the labels' names by the index of their logit.

    Args:
        model_settings: The checkpoint's `config.json`.
        config: The recipe's.
        logits: How many the model gives.
        source: The checkpoint's name, for the message.

    Raises:
        InputError: Neither names labels, or who does names another number of them than the model has, or one twice.
    """
    given = {int(index): str(name) for index, name in (model_settings.get("id2label") or {}).items()}
    names, place, remedy = config.labels, "task.classification.labels", "correct the list"
    if names is None:
        names = [given[index] for index in sorted(given)]
        place, remedy = f"checkpoint {source}: id2label", "give task.classification.labels"
    if not names:
        raise InputError(f"checkpoint {source}: names no labels (id2label); {remedy}")
    if len(names) != logits:
        raise InputError(f"{place}: must be {logits} names (the checkpoint's labels), got {len(names)}; {remedy}")
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{place}: must be names that differ, got {name!r} {count} times; {remedy}")
    return names


def postprocessor(
    recipe: Recipe, infer: Infer, signature: Signature, tokenizer: Tokenizer, data: Data, checkpoint: Checkpoint
) -> Postprocessor:
    """Returns what makes labels of the model's logits.

    Raises:
        InputError: The labels are not those of the logits, or the data has one that the model does not know.
    """
    config: Config = recipe.task.config
    logits = signature.outputs["logits"].width
    labels = labels_of(checkpoint.settings("config.json"), config, logits=logits, source=checkpoint.source)
    for row in (*data.rows, *data.held_out):
        check_labels(row, labels)
    temperature = config.temperature
    if temperature is None and data.held_out:
        answered = logits_of(recipe, infer, signature, tokenizer, data.held_out)
        temperature = best_temperature(answered, data.held_out, labels, multi_label=config.multi_label)
    if temperature is None:
        temperature = checkpoint.chosen.get("temperature", 1.0)
    return Postprocessor(labels=labels, multi_label=config.multi_label, temperature=temperature)


def best_temperature(
    logits: NDArray[np.float32], rows: Sequence[LabelledText], labels: Sequence[str], *, multi_label: bool
) -> float:
    """Returns the temperature at which the labels of `rows` are the most probable, for logits `(texts, labels)`."""

    def probabilities(temperature: float) -> NDArray[np.float32]:
        return Postprocessor(labels=labels, multi_label=multi_label, temperature=temperature).probabilities(logits)

    return measures.best_temperature(logits, indicators(rows, labels), probabilities)


def check_labels(row: LabelledText, labels: Sequence[str]) -> None:
    """Refuses a text with a label that is none of `labels`."""
    for label in row.labels:
        if label not in labels:
            raise InputError(
                f"text {row.text[:60]!r}: label must be one of {', '.join(labels[:20])}, got {label!r}; correct it, or "
                "give task.classification.labels"
            )


def logits_of(
    recipe: Recipe, infer: Infer, signature: Signature, tokenizer: Tokenizer, rows: Sequence[LabelledText]
) -> NDArray[np.float32]:
    """Returns what the model answers to `rows`, FP32 `(texts, labels)`."""
    sequences = encoded(make_encoder(recipe, signature, tokenizer), texts_of(rows))
    pipeline = Pipeline(alone, partial(map, infer), lambda *_: {})
    logits: NDArray[np.float32] = pipeline.outputs(sequences, sequences.pieces()["lengths"])["logits"]
    return logits


def indicators(rows: Sequence[LabelledText], labels: Sequence[str]) -> NDArray[np.bool_]:
    """Returns which labels each of `rows` has, `(texts, labels)`."""
    return np.array([[label in row.labels for label in labels] for row in rows])


def scorer(data: Data, answers: Answers) -> Scorer:
    """Returns the metrics of the labels, and the calibration error of their probabilities (`ece`, lower is better)."""
    names, probability = _by_name(answers)
    truth = indicators(data.rows, names)
    return lambda rows: scores(truth[rows], probability[rows], multi_label=data.multi_label)


def agreement(data: Data, answers: Answers, others: Answers) -> NDArray[np.float64]:
    """Returns 1 for each text whose label (of a multi-label task: all of whose labels) `others` has too, `(texts,)`."""
    first, second = (_decided(_by_name(given)[1], multi_label=data.multi_label) for given in (answers, others))
    same: NDArray[np.float64] = (first == second).all(1).astype(np.float64)
    return same


def _by_name(answers: Answers) -> tuple[list[str], NDArray[np.float32]]:
    """Returns the labels' names, sorted, and their probabilities, FP32 `(texts, labels)`."""
    names = sorted({label.decode() for label in answers["LABEL"][0]})
    probability = np.zeros((len(answers["LABEL"]), len(names)), np.float32)
    column = {name.encode(): index for index, name in enumerate(names)}
    places = np.array([[column[label] for label in row] for row in answers["LABEL"]])
    np.put_along_axis(probability, places, answers["SCORE"], 1)
    return names, probability


def _decided(probability: NDArray[np.float32], *, multi_label: bool) -> NDArray[np.bool_]:
    """Returns which labels are answered, `(texts, labels)`."""
    if multi_label:
        return probability >= DECISION
    decided: NDArray[np.bool_] = np.arange(probability.shape[1]) == probability.argmax(1)[:, None]
    return decided


def scores(truth: NDArray[np.bool_], probability: NDArray[np.float32], *, multi_label: bool) -> dict[str, float]:
    """Returns the metrics for probabilities FP32 `(texts, labels)`."""
    answered = _decided(probability, multi_label=multi_label)
    if multi_label:
        sure = np.where(answered, probability, 1 - probability).ravel()
        error = measures.expected_calibration_error(sure, (answered == truth).ravel())
    else:
        error = measures.expected_calibration_error(probability.max(1), (truth & answered).any(1))
    return {
        "accuracy": measures.accuracy(truth, answered),
        "macro_f1": measures.macro_f1(truth, answered),
        "mcc": measures.matthews(truth, answered),
        "ece": error,
    }


def ensemble_inputs() -> list[pb.ModelInput]:
    """Returns the public inputs."""
    return [pb.ModelInput(name=INPUTS[0], data_type=pb.TYPE_STRING, dims=[1])]


def ensemble_outputs(config: Config) -> list[pb.ModelOutput]:
    """Returns the public outputs; there are as many labels as the model has."""
    return [
        pb.ModelOutput(name="LABEL", data_type=pb.TYPE_STRING, dims=[-1]),
        pb.ModelOutput(name="SCORE", data_type=pb.TYPE_FP32, dims=[-1]),
    ]
