"""Reads and checks a recipe: what is built, from what, and how good it must stay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tritonpress_server import strict_yaml

from tritonpress_generator import pass_order, plugins
from tritonpress_generator.checked import checked
from tritonpress_generator.errors import InputError
from tritonpress_generator.scores import AGREEMENT

NAME_PATTERN = r"^[a-z][a-z0-9_]{0,62}$"


class Settings(BaseModel):
    """A part of a recipe: immutable; refuses a misspelt key, another type (`true` is no count), infinity and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


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
    task: str | dict[str, Any]
    checkpoint: CheckpointConfig
    passes: list[str | dict[str, Any]] = []
    graph: list[str | dict[str, Any]] = []
    gate: GateConfig
    engine: str | dict[str, Any]
    serve: ServeConfig = ServeConfig()
    data: DataConfig | None = None
    finetune: dict[str, Any] = {}
    search: dict[str, Any] | None = None
    folder: str = "."
    """What files are named relative to, itself relative to the recipe."""


@dataclass(frozen=True)
class Stage:
    """A word of the recipe: its file and its checked settings."""

    word: str
    module: ModuleType
    config: Any


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; every word found, every setting typed."""

    path: Path
    name: str
    task: Stage
    checkpoint: CheckpointConfig
    passes: tuple[Stage, ...]
    graph: tuple[Stage, ...]
    gate: GateConfig
    engine: Stage
    serve: ServeConfig
    lengths: tuple[Stage, ...]
    """The forms to choose from."""
    layout: Stage
    """How the work is divided into Triton models."""
    data: DataConfig | None
    """Labelled examples for what trains and measures on them."""
    finetune: Stage
    """How the task is trained."""
    search: Any
    """The settings of a search (`search/settings.py`); None where the recipe has none."""
    folder: Path
    """What files are named relative to."""
    raw: dict[str, Any]
    """As it is written, parsed."""
    text: str

    def file(self, relative: str) -> Path:
        """Returns the path of a file that the recipe names."""
        return (self.folder / relative).resolve()


def load(path: Path) -> Recipe:
    """Returns the recipe in the YAML file `path`.

    Raises:
        InputError: The file cannot be read, or as `of`.
    """
    data, text = _parsed(path)
    return of(data, path=path, text=text)


def written(path: Path) -> RecipeText:
    """Returns the recipe in the YAML file `path` as it is written; of what its words name nothing is imported.

    Raises:
        InputError: As `load`, but for the settings of these words, which their files know.
    """
    return _written(_parsed(path)[0], path=path)


def _parsed(path: Path) -> tuple[dict[str, Any], str]:
    """Returns the mapping in a YAML file, and its text."""
    if path.exists() and not path.is_file():
        # It is read more than once, which a pipe cannot be.
        raise InputError(f"recipe {path}: must be a file; give the path of a YAML recipe")
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(strict_yaml.MOST_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"recipe {path}: cannot be read ({exc}); give the path of a YAML recipe") from exc
    try:
        data = strict_yaml.load(text)
    except strict_yaml.StrictYamlError as exc:
        raise InputError(f"recipe {path}: is not YAML that can be read ({exc}); correct it") from exc
    if not isinstance(data, dict):
        raise InputError(f"recipe {path}: must be a mapping with the keys {', '.join(RecipeText.model_fields)}")
    return data, text


def _written(data: dict[str, Any], *, path: Path) -> RecipeText:
    """Returns the recipe of parsed YAML as it is written, each word that of a file."""
    raw: RecipeText = checked(RecipeText, data, where=str(path))
    stages = [("tasks", "task", raw.task), ("engines", "engine", raw.engine)]
    stages += [("passes", f"passes[{i}]", stage) for i, stage in enumerate(raw.passes)]
    stages += [("graph", f"graph[{i}]", stage) for i, stage in enumerate(raw.graph)]
    forms = [("serve.lengths", raw.serve.lengths)]
    search = _search(raw.search, path=path)
    if search is not None:
        for i, precision in enumerate(search.space.precisions or ()):
            stages += [("graph", f"search.space.precisions[{i}][{j}]", stage) for j, stage in enumerate(precision)]
        forms += [("search.space.lengths", form) for form in search.space.lengths or ()]
    stages += [("lengths", key, form) for key, form in forms if form != "auto" and not isinstance(form, list)]
    for kind, key, stage in stages:
        word, _ = divided(stage, where=f"{path}: {key}")
        plugins.check(kind, word, path=f"{path}: {key}")
    if raw.serve.steps is not None:
        plugins.check("layouts", raw.serve.steps, path=f"{path}: serve.steps")
    return raw


def of(data: dict[str, Any], *, path: Path, text: str | None = None) -> Recipe:
    """Returns the recipe of parsed YAML.

    Args:
        data: As it is written.
        path: Where it lies, or would.
        text: Of the file; default: `data` as YAML.

    Raises:
        InputError: A key is unknown, a value is out of range, a word names no file, passes are in an order that makes
            no sense.
    """
    raw = _written(data, path=path)
    # Those whose files import the most come last, so that what is wrong in the others is said before.
    engine = staged("engines", raw.engine, path=path, key="engine")
    forms = _forms(raw.serve.lengths, engine, path=path)
    graph = tuple(staged("graph", stage, path=path, key=f"graph[{i}]") for i, stage in enumerate(raw.graph))
    task = staged("tasks", raw.task, path=path, key="task")
    _check_metric(raw.gate, task, path=path)
    _check_turns(raw.serve, engine, path=path)
    layout = layout_of(raw.serve.steps, task, engine, path=path)
    finetune = _finetune(raw.finetune, task.word, path=path)
    passes = tuple(staged("passes", stage, path=path, key=f"passes[{i}]") for i, stage in enumerate(raw.passes))
    pass_order.check([(stage.word, stage.config) for stage in passes], path=path)
    lengths = tuple(staged("lengths", form, path=path, key="serve.lengths") for form in forms)
    return Recipe(
        path=path,
        name=raw.name,
        task=task,
        checkpoint=raw.checkpoint,
        passes=passes,
        graph=graph,
        gate=raw.gate,
        engine=engine,
        serve=raw.serve,
        lengths=lengths,
        layout=layout,
        data=raw.data,
        finetune=finetune,
        search=_search(raw.search, path=path),
        folder=path.parent / raw.folder,
        raw=data,
        text=yaml.safe_dump(data, sort_keys=False) if text is None else text,
    )


def _check_metric(gate: GateConfig, task: Stage, *, path: Path) -> None:
    metrics = (*task.module.METRICS, AGREEMENT)
    if gate.metric not in metrics:
        known = ", ".join(metrics)
        raise InputError(f"{path}: gate.metric: unknown metric {gate.metric!r}; {task.word} has: {known}")


def _check_turns(serve: ServeConfig, engine: Stage, *, path: Path) -> None:
    """Refuses a rate limiter for an engine of several instances."""
    instances = getattr(engine.config, "instances", 1)
    if serve.rate_limiter is not None and instances != 1:
        # Triton 2.51 tries the first alone of all instances that wait for a resource, or for none.
        raise InputError(
            f"{path}: serve.rate_limiter: one execution goes on at a time, and while another waits Triton serves no "
            f"model; engine.{engine.word}.instances must be 1, is {instances or 'left to the machine'}; write 1"
        )


def labelled(data: DataConfig | None, *, path: Path) -> DataConfig:
    """Returns the `data` of the recipe `path`.

    Raises:
        InputError: It has none.
    """
    if data is None:
        raise InputError(f"{path}: must have 'data'; add it, with train and validation files")
    return data


def layouts_of(task: Stage, engine: Stage) -> list[str]:
    """Returns the divisions into Triton models that a task and an engine may have, the best first."""
    layouts = ((name, plugins.find("layouts", name, path="layouts")) for name in engine.module.LAYOUTS)
    return [name for name, layout in layouts if layout.WINDOWS or not task.module.WINDOWS]


def layout_of(word: str | None, task: Stage, engine: Stage, *, path: Path) -> Stage:
    """Returns the division into Triton models that `word` names, or the best."""
    possible = layouts_of(task, engine)
    word = word or possible[0]
    module = plugins.find("layouts", word, path=f"{path}: serve.steps")
    if word not in engine.module.LAYOUTS:
        raise InputError(
            f"{path}: serve.steps: the engine {engine.word} does not run inside a Python step, as {word!r} wants; "
            f"allowed: {', '.join(possible)}"
        )
    if word not in possible:
        raise InputError(
            f"{path}: serve.steps: a text of {task.word} may need several executions of the engine, and {word!r} has "
            f"one a request; allowed: {', '.join(possible)}"
        )
    return Stage(word, module, None)


def lengths_of(raw: str | list[int] | dict[str, Any], engine: Stage, *, path: Path) -> tuple[Stage, ...]:
    """Returns the form that `raw` names, or for `auto` all that the engine takes, the best first."""
    forms = _forms(raw, engine, path=path)
    return tuple(staged("lengths", form, path=path, key="serve.lengths") for form in forms)


def _forms(raw: str | list[int] | dict[str, Any], engine: Stage, *, path: Path) -> list[str | dict[str, Any]]:
    """Returns what `lengths_of` stages; refuses a form that the engine cannot take."""
    if raw == "auto":
        return [*engine.module.FORMS]
    form = {"buckets": {"borders": raw}} if isinstance(raw, list) else raw
    word, _ = divided(form, where=f"{path}: serve.lengths")
    plugins.check("lengths", word, path=f"{path}: serve.lengths")
    if word not in engine.module.FORMS:
        raise InputError(
            f"{path}: serve.lengths: the engine {engine.word} cannot take {word!r}; "
            f"allowed: auto, {', '.join(engine.module.FORMS)}"
        )
    return [form]


def _search(raw: dict[str, Any] | None, *, path: Path) -> Any:
    """Returns the checked settings of a search."""
    if raw is None:
        return None
    # Its file needs this one's Settings.
    from tritonpress_generator.search.settings import Config

    return checked(Config, raw, where=str(path), key="search.")


def staged(kind: str, raw: str | dict[str, Any], *, path: Path, key: str) -> Stage:
    """Returns the stage that `word` or `{word: {settings}}` describes."""
    word, settings = divided(raw, where=f"{path}: {key}")
    module = plugins.find(kind, word, path=f"{path}: {key}")
    return Stage(word, module, checked(module.Config, settings or {}, where=f"{path}: {key}.{word}"))


def divided(raw: str | dict[str, Any], *, where: str) -> tuple[str, Any]:
    """Returns a stage's word and its settings."""
    if isinstance(raw, str):
        return raw, {}
    if len(raw) != 1:
        raise InputError(f"{where}: give one word, or one word with its settings, got {sorted(map(str, raw))}")
    word, settings = next(iter(raw.items()))
    return str(word), settings


def _finetune(raw: dict[str, Any], word: str, *, path: Path) -> Stage:
    """Returns how the task `word` is trained: the file of its name has the settings."""
    module = plugins.find("training", word, path=f"{path}: finetune")
    return Stage(word, module, checked(module.Config, raw, where=str(path), key="finetune."))
