"""A recipe as it is written: its keys, their types and ranges; what its words name is not looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tritonpress_generator.errors import InputError
from tritonpress_generator.scores import AGREEMENT

NAME_PATTERN = r"^[a-z][a-z0-9_]{0,62}$"


class Settings(BaseModel):
    """A part of a recipe: immutable; refuses a misspelt key, another type (`true` is no count), infinity and NaN."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class CheckpointConfig(Settings):
    source: str = Field(min_length=1)
    """A hub id (`organisation/name`), a folder (absolute, or `./…` from the recipe on), or `package:NAME`."""
    revision: str | None = None
    """The hub's branch, tag or commit; only for hub ids."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """The expected SHA-256 of the weights (`model.safetensors`); checked before they are read."""
    adapter: str | None = None
    """The folder of a LoRA adapter (peft) with the task's head, relative to the recipe; merged in when it is loaded."""


class DataConfig(Settings):
    """Labelled examples beside those of the gate, relative to `--data` (default: the recipe's folder)."""

    train: list[str] = Field(min_length=1)
    """Files of examples to train on, and on which passes see what matters to the model."""
    validation: list[str] = Field(min_length=1)
    """Files of held-out examples: what is chosen is what is best on them."""
    test: list[str] = []
    """Files of examples on which a training's result is scored, and nothing is chosen."""

    def check_files(self, folder: Path) -> None:
        """Refuses a folder that lacks one of the files."""
        for file in (*self.train, *self.validation, *self.test):
            if not (folder / file).is_file():
                raise InputError(f"data: {folder} must have the file {file}, has not; give its folder with --data")


class GateConfig(Settings):
    dataset: str
    """The task's labelled examples, relative to the recipe; without labels if the metric is `agreement`."""
    metric: str
    """One of the task's metrics, or `agreement`: how far answers are those of the FP32 baseline."""
    keep: float = Field(default=0.99, gt=0, le=1)
    """The share of the FP32 baseline's metric that what is served must keep."""
    confidence: Annotated[float, Field(gt=0, lt=1)] | Literal["point"] = 0.95
    """How certain that must be, of all examples like those in the data set; `point`: not at all, the measured share
    decides, as small data sets need it."""
    agreement: float | None = Field(default=None, gt=0, le=1)
    """The least `agreement` of what is served, beside the metric."""

    @model_validator(mode="after")
    def _can_be_certain(self) -> GateConfig:
        for name in ("keep", "agreement"):
            if self.confidence != "point" and getattr(self, name) == 1:
                raise ValueError(
                    f"{name} must be below 1, is 1, which no number of examples makes certain; lower it, or give "
                    "confidence: point"
                )
        return self

    @property
    def labelled(self) -> bool:
        """Whether the examples must have labels."""
        return self.metric != AGREEMENT


class QueuePolicy(Settings):
    max_queue_size: int = Field(default=0, ge=0)
    """The most requests that wait; one more is refused, which a client may send to another server. 0: no limit."""
    default_timeout_microseconds: int = Field(default=0, ge=0)
    """How long a request may wait; looked at when an execution has ended. 0: as long as it takes."""
    timeout_action: Literal["reject", "delay"] = "reject"
    """What becomes of one that has waited longer: it is refused, or answered after all others."""
    allow_timeout_override: bool = False
    """Whether a request's own timeout counts, where it is shorter."""

    @model_validator(mode="after")
    def _has_a_timeout(self) -> QueuePolicy:
        if not self.default_timeout_microseconds and (self.timeout_action == "delay" or self.allow_timeout_override):
            raise ValueError(
                "timeout_action: delay and allow_timeout_override need default_timeout_microseconds above 0, without "
                "which Triton lets none expire"
            )
        return self


class QueueConfig(QueuePolicy):
    priority_levels: int = Field(default=1, ge=1, le=64)
    """How many priorities requests may have; 1 is the highest."""
    default_priority_level: int | None = Field(default=None, ge=1)
    """Of a request that says none; default: the lowest."""
    by_priority: dict[int, QueuePolicy] = {}
    """What holds for a priority in place of the policy above."""

    @model_validator(mode="after")
    def _names_its_levels(self) -> QueueConfig:
        if self.by_priority and self.priority_levels == 1:
            raise ValueError(
                "by_priority needs priority_levels above 1; give them, or write its policy in queue itself"
            )
        for level in (self.default_priority_level or 1, *self.by_priority):
            if not 1 <= level <= self.priority_levels:
                raise ValueError(f"level {level} must be in 1..{self.priority_levels} (priority_levels)")
        return self

    @property
    def timeouts(self) -> list[int]:
        """The timeouts that there are."""
        policies = (self, *self.by_priority.values())
        return [p.default_timeout_microseconds for p in policies if p.default_timeout_microseconds]


class RateLimiterConfig(Settings):
    resources: dict[str, Annotated[int, Field(ge=1)]] = Field(min_length=1)
    """How much of each resource an execution holds; workloads that name the same one share it. There is as much of it
    as the execution holds that holds most. While one waits for it, Triton 2.51 begins no execution of any model."""
    priority: int = Field(default=1, ge=1)
    """One of priority 2 is given half as many executions as one of priority 1."""


class ServeConfig(Settings):
    max_batch_size: int = Field(default=16, ge=1, le=1024)
    """The most sequences in one execution of the engine, and in one request of a client."""
    dynamic_batching: bool = True
    """Whether requests of several clients share an execution of the engine. Without, the slowest wait less, and a CPU
    at its limit serves less (docs/measurements.md)."""
    max_queue_delay_microseconds: int = Field(default=0, ge=0, le=1_000_000)
    """How long the dynamic batcher waits for companions. 0: it takes what has queued while the engine was busy."""
    preferred_batch_size: list[Annotated[int, Field(ge=2, le=1024)]] = []
    """Executions of which the dynamic batcher waits for no more companions; for engines whose kernels are chosen for a
    few sizes."""
    max_length: int = Field(default=256, ge=8)
    """The most tokens a sequence may have, special tokens included; the model's positions are the upper bound."""
    too_long: Literal["cut", "refuse"] = "cut"
    """What happens to a text of more tokens."""
    lengths: str | list[int] | dict[str, Any] = "auto"
    """How requests of different lengths share the engine: `exact` (those of one length), `ragged` (packed into one
    batch), `buckets` (padded to the next of a few lengths; a list gives them), or `auto` (what is the fastest of them
    on this machine, measured with the samples)."""
    samples: str | None = None
    """Texts as they will be asked, one a line, relative to the recipe; default: the task's own examples."""
    steps: str | None = None
    """How the work is divided into Triton models: `single` (one in Python), `ensemble` (tokenizer, engine in its own
    backend, post-processing) or `scripting` (an engine in its own backend, and one step that calls it); default: the
    first of these that the engine and the task take."""
    tokenizer_instances: int = Field(default=1, ge=1, le=64)
    """Processes of the tokenizer's step, where it is one; with priorities two at least."""
    queue: QueueConfig = QueueConfig()
    """Who waits, how long, and who goes first, where the work is done."""
    rate_limiter: RateLimiterConfig | None = None
    """What executions of this and other workloads share, so that they take turns."""
    response_cache: bool = False
    """Whether the server keeps answers, and gives them again to the same request."""

    @model_validator(mode="after")
    def _queues_for_the_batcher(self) -> ServeConfig:
        if self.queue != QueueConfig() and not self.dynamic_batching:
            raise ValueError("queue needs dynamic_batching: true, whose queue it is; leave one of them out")
        if self.preferred_batch_size and max(self.preferred_batch_size) > self.max_batch_size:
            raise ValueError(
                f"preferred_batch_size must be at most max_batch_size ({self.max_batch_size}), got "
                f"{max(self.preferred_batch_size)}; lower it"
            )
        if any(timeout <= self.max_queue_delay_microseconds for timeout in self.queue.timeouts):
            raise ValueError(
                f"queue: default_timeout_microseconds must be above max_queue_delay_microseconds "
                f"({self.max_queue_delay_microseconds}), got {min(self.queue.timeouts)}: what waits for companions "
                "would expire"
            )
        return self


class RecipeText(Settings):
    """The recipe as it is written; the words are resolved to their files afterwards."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    """The public model's name, and the repository's; a client asks for it."""
    task: str | dict[str, Any]
    """What is answered: a word, or a word with its settings."""
    checkpoint: CheckpointConfig
    """The model that is built."""
    passes: list[str | dict[str, Any]] = []
    """What changes the model in torch, in this order; several of one word are allowed."""
    graph: list[str | dict[str, Any]] = []
    """What changes its ONNX graph, in this order."""
    gate: GateConfig
    """How good what is served must stay."""
    engine: str | dict[str, Any]
    """What computes it, on which kind of machine."""
    serve: ServeConfig = ServeConfig()
    """How it is served."""
    data: DataConfig | None = None
    """Labelled examples, where something is trained or chosen by them."""
    finetune: dict[str, Any] = {}
    """How `tritonpress finetune` trains the task; its keys are the task's."""
    search: dict[str, Any] | None = None
    """What `tritonpress search` tries, and for how long."""
    folder: str = "."
    """What files are named relative to, itself relative to the recipe."""
