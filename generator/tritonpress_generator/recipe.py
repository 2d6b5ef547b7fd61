"""Reads and checks a recipe: what is built, from what, and how good it must stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from tritonpress_server import strict_yaml

from tritonpress_generator import graph_order, pass_order, plugins
from tritonpress_generator.checked import checked
from tritonpress_generator.errors import InputError
from tritonpress_generator.recipe_text import CheckpointConfig, DataConfig, GateConfig, RecipeText, ServeConfig
from tritonpress_generator.scores import AGREEMENT


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
    asked: str | None = None
    """A file of texts that are asked in place of what `serve.samples` says; graph passes calibrate on that as ever."""

    @property
    def pass_names(self) -> list[str]:
        """What each of the passes is called: its word, and its place beside it where the word occurs several times."""
        words = [stage.word for stage in self.passes]
        return [f"passes[{i}] ({word})" if words.count(word) > 1 else word for i, word in enumerate(words)]

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
    try:
        if path.exists() and not path.is_file():
            # It is read more than once, which a pipe cannot be.
            raise InputError(f"recipe {path}: must be a file; give the path of a YAML recipe")
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
            no sense, graph passes cannot work together or for the engine.
    """
    raw = _written(data, path=path)
    # Those whose files import the most come last, so that what is wrong in the others is said before.
    engine = staged("engines", raw.engine, path=path, key="engine")
    forms = _forms(raw.serve.lengths, engine, path=path)
    graph = _graph(raw.graph, engine, path=path, key="graph")
    search = _search(raw.search, path=path)
    if search is not None:
        for i, precision in enumerate(search.space.precisions or ()):
            _graph(precision, engine, path=path, key=f"search.space.precisions[{i}]")
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
        search=search,
        folder=path.parent / raw.folder,
        raw=data,
        text=yaml.safe_dump(data, sort_keys=False) if text is None else text,
    )


def _graph(raw: Sequence[str | dict[str, Any]], engine: Stage, *, path: Path, key: str) -> tuple[Stage, ...]:
    """Returns the graph passes at `key`; refuses what cannot work together, or for the engine."""
    graph = tuple(staged("graph", stage, path=path, key=f"{key}[{i}]") for i, stage in enumerate(raw))
    graph_order.check(graph, engine, path=path, key=key)
    return graph


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
