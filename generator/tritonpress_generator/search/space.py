"""The candidates of a search: what the recipe leaves to choose, and the recipe that each of them is."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tritonpress_generator import recipe as recipes
from tritonpress_generator.errors import InputError
from tritonpress_generator.recipe import Recipe, Stage
from tritonpress_generator.search.settings import Config

_FLOPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
_SEARCHED = ("crop", "prune", "distill")
_FIRST_EPOCHS = 0.25
"""The share of the recipe's epochs after which a distilled candidate is judged first."""
_NONE = object()
_MOST_EPOCHS = 2
"""How many times the recipe's epochs a candidate that misses the gate is distilled at most."""


@dataclass(frozen=True)
class Candidate:
    """One point of the space; equal candidates are the same recipe."""

    layers: int
    heads: float
    ffn: float
    flops: float
    vocabulary: bool
    graph: str
    """The graph passes, as JSON."""
    lengths: str
    """As JSON."""
    excluded: tuple[int, ...] = ()
    """Layers that are not quantised, ascending."""
    epochs: float = 0.0
    """Of the distillation; 0: none."""

    @property
    def key(self) -> str:
        """A hash of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Candidate:
        """Returns the candidate of which `data` is the `asdict`, as JSON gives it back."""
        return cls(**{**data, "excluded": tuple(data["excluded"])})


@dataclass(frozen=True)
class Space:
    """All candidates of a recipe."""

    recipe: Recipe
    depth: int
    """Layers of the model as it is."""
    dimensions: Mapping[str, tuple[Any, ...]]
    """What each of a candidate's first fields may be, the mildest first; `graph` is ordered from the fastest on."""

    @classmethod
    def load(cls, recipe: Recipe, config: Config, *, depth: int, kinds: Sequence[str], lengths: Any) -> Space:
        """Returns the space of `recipe`.

        Args:
            recipe: The recipe.
            config: Its `search`.
            depth: How many layers the model has.
            kinds: What of the model can be pruned: `heads`, `ffn`.
            lengths: The form of the lengths, where the recipe's `search` names none.

        Raises:
            InputError: The space has what this model has not, or the recipe passes that a search does not make.
        """
        given, where = config.space, f"{recipe.path}: search.space"
        passes = [stage.word for stage in recipe.passes]
        if others := [word for word in passes if word not in _SEARCHED]:
            raise InputError(
                f"{recipe.path}: passes: a search tries {', '.join(_SEARCHED)}, got {others[0]}; leave it out, and add "
                "it to the recipe of the point that is chosen"
            )
        if several := [word for word in _SEARCHED if passes.count(word) > 1]:
            raise InputError(
                f"{recipe.path}: passes: a search makes its passes of one setting of each, got {several[0]} "
                f"{passes.count(several[0])} times; leave all of them out but one, or build the recipe as it is"
            )
        if given.layers is not None and max(given.layers) > depth:
            raise InputError(
                f"{where}.layers must be at most {depth} (the model's), got {max(given.layers)}; correct them"
            )
        both = "heads" in kinds
        if not both and (any(given.flops or ()) or any(given.heads)):
            raise InputError(f"{where}: the heads of this model cannot be pruned; give ffn in place of flops and heads")
        default = not any((*given.heads, *given.ffn))
        flops = given.flops or (_FLOPS if default and both else (0.0,))
        ffn = _FLOPS if default and not both else given.ffn
        precisions = given.precisions or _precisions(recipe)
        for form in given.lengths or ():
            recipes.lengths_of(form, recipe.engine, path=recipe.path)
        layers = given.layers or range(depth, (depth - 1) // 2, -1)
        dimensions: dict[str, tuple[Any, ...]] = {
            "layers": tuple(sorted(set(layers), reverse=True)),
            "heads": tuple(sorted(set(given.heads))),
            "ffn": tuple(sorted(set(ffn))),
            "flops": tuple(sorted(set(flops))),
            "vocabulary": tuple(sorted(set(given.vocabulary))),
            "graph": tuple(dict.fromkeys(map(_canonical, precisions))),
            "lengths": tuple(dict.fromkeys(map(_canonical, given.lengths or [lengths]))),
        }
        return cls(recipe, depth, dimensions)

    @property
    def reference(self) -> Candidate:
        """The model as it is, in the fastest precision: what the others are timed against."""
        return Candidate(self.depth, 0.0, 0.0, 0.0, False, self.dimensions["graph"][0], self.dimensions["lengths"][0])

    def at(self, places: Mapping[str, int]) -> Candidate:
        """Returns the candidate at a place of each dimension."""
        return Candidate(**{name: values[places[name]] for name, values in self.dimensions.items()})

    def places(self, candidate: Candidate) -> dict[str, int] | None:
        """Returns the place of a candidate in each dimension; None where it has none, as the reference may not."""
        values = asdict(candidate)
        if any(values[name] not in of for name, of in self.dimensions.items()):
            return None
        return {name: of.index(values[name]) for name, of in self.dimensions.items()}

    def all(self) -> Iterator[Candidate]:
        """Yields every candidate."""
        for values in itertools.product(*self.dimensions.values()):
            yield Candidate(**dict(zip(self.dimensions, values, strict=True)))

    @property
    def length(self) -> int:
        """The tokens of a sequence for which multiplications are counted."""
        return int(self._own("prune").get("length", 128))

    @cached_property
    def epochs(self) -> float:
        """Of the recipe's own `distill`; 0 where it has none."""
        return float(self._own("distill").get("epochs", 2.0)) if self._named("distill") else 0.0

    @cached_property
    def first_epochs(self) -> float:
        """Of the distillation by which a candidate is judged first; 0 where none is trained."""
        return max(self.trained(candidate, first=True).epochs for candidate in self.all())

    @cached_property
    def distillation(self) -> Any:
        """The settings of the recipe's own `distill`, whose epochs are not a candidate's."""
        raw = {"distill": self._own("distill")}
        return recipes.staged("passes", raw, path=self.recipe.path, key="passes").config

    def label(self, candidate: Candidate) -> str:
        """Returns what a candidate is, in few words, which no other one has."""
        parts = [f"{candidate.layers} layer{'s' if candidate.layers > 1 else ''}"]
        for name in ("flops", "heads", "ffn"):
            if share := getattr(candidate, name):
                parts.append(f"{name} -{100 * share:.4g}%")
        parts += ["vocabulary"] if candidate.vocabulary else []
        parts += [f"distilled {candidate.epochs:g}"] if candidate.epochs else []
        parts.append(self._label_of_graph(candidate.graph))
        parts += [f"but layers {', '.join(map(str, candidate.excluded))}"] if candidate.excluded else []
        if len(self.dimensions["lengths"]) > 1:
            parts.append(f"lengths {_plain(json.loads(candidate.lengths))}")
        return ", ".join(parts)

    def _label_of_graph(self, graph: str) -> str:
        """Returns the names of graph passes, each with those settings that others of the same names have not."""
        own = json.loads(graph)
        alike = [other for other in map(json.loads, self.dimensions["graph"]) if words(other) == words(own)]
        said = []
        for place, (word, settings) in enumerate(zip(words(own), map(_settings, own), strict=True)):
            others = [_settings(other[place]) for other in alike]
            apart = [key for key, value in settings.items() if any(o.get(key, _NONE) != value for o in others)]
            said.append(word + (f" ({', '.join(f'{key} {_plain(settings[key])}' for key in apart)})" if apart else ""))
        return " + ".join(said) or "no graph pass"

    def trained(self, candidate: Candidate, *, first: bool) -> Candidate:
        """Returns the candidate with the distillation it is judged by: a short one `first`; none where it is whole."""
        epochs = self.epochs * (_FIRST_EPOCHS if first else 1)
        return replace(candidate, epochs=0.0 if self._whole(candidate) else epochs)

    def passes(self, candidate: Candidate) -> list[dict[str, Any]]:
        """Returns the recipe's `passes` of a candidate."""
        crop = {name: value for name, value in self._own("crop").items() if name not in {"layers", "vocabulary"}}
        if candidate.layers < self.depth:
            crop["layers"] = candidate.layers
        if candidate.vocabulary:
            crop["vocabulary"] = self._own("crop").get("vocabulary") or {}
        prune = {name: value for name, value in self._own("prune").items() if name not in {"heads", "ffn", "flops"}}
        shares = {name: getattr(candidate, name) for name in ("heads", "ffn", "flops") if getattr(candidate, name)}
        passes = [{"crop": crop}] if crop.keys() - {"samples"} else []
        passes += [{"prune": prune | shares}] if shares else []
        passes += [{"distill": self._own("distill") | {"epochs": candidate.epochs}}] if candidate.epochs else []
        return passes

    def graph(self, candidate: Candidate, pattern: Callable[[int], str]) -> list[Any]:
        """Returns the recipe's `graph` of a candidate; `pattern` matches the names of a layer's products."""
        graph: list[Any] = []
        for raw in json.loads(candidate.graph):
            word, settings = (raw, {}) if isinstance(raw, str) else next(iter(raw.items()))
            if candidate.excluded and excludes(self._stage(raw)):
                more = [pattern(layer) for layer in candidate.excluded]
                graph.append({word: {**(settings or {}), "exclude": [*(settings or {}).get("exclude", []), *more]}})
            else:
                graph.append(raw)
        return graph

    def written(self, candidate: Candidate, pattern: Callable[[int], str]) -> dict[str, Any]:
        """Returns the recipe of a candidate, as it is written."""
        raw = {name: value for name, value in self.recipe.raw.items() if name != "search"}
        serve = {**raw.get("serve", {}), "lengths": json.loads(candidate.lengths)}
        return raw | {"passes": self.passes(candidate), "graph": self.graph(candidate, pattern), "serve": serve}

    def quantized(self, candidate: Candidate) -> bool:
        """Says whether layers can be left out of the candidate's precision."""
        return any(excludes(self._stage(raw)) for raw in json.loads(candidate.graph))

    def milder(self, candidate: Candidate, stage: str) -> Candidate | None:
        """Returns the candidate with less of `stage` (or a longer `distill`); None where there is no less of it."""
        if stage == "crop":
            return self._next(candidate, "layers") or self._next(candidate, "vocabulary")
        if stage == "prune":
            return next(filter(None, (self._next(candidate, name) for name in ("flops", "ffn", "heads"))), None)
        if stage == "distill":
            more = candidate.epochs * 2
            return replace(candidate, epochs=more) if 0 < more <= self.epochs * _MOST_EPOCHS else None
        graphs = self.dimensions["graph"]
        at = graphs.index(candidate.graph) + 1
        return replace(candidate, graph=graphs[at], excluded=()) if at < len(graphs) else None

    def _next(self, candidate: Candidate, name: str) -> Candidate | None:
        """Returns the candidate with the next milder value of a dimension."""
        own = getattr(candidate, name)
        milder = [value for value in self.dimensions[name] if (value > own if name == "layers" else value < own)]
        if not milder:
            return None
        changed = replace(candidate, **{name: milder[-1]})
        # Layers that are left out of a precision are counted among those that stay.
        changed = replace(changed, excluded=()) if name == "layers" else changed
        return replace(changed, epochs=0.0) if self._whole(changed) else changed

    def _whole(self, candidate: Candidate) -> bool:
        """Says whether nothing of the layers is cut, so that a distillation has nothing to mend."""
        return not (candidate.layers < self.depth or candidate.heads or candidate.ffn or candidate.flops)

    def _named(self, word: str) -> Stage | None:
        return next((stage for stage in self.recipe.passes if stage.word == word), None)

    def _own(self, word: str) -> dict[str, Any]:
        """Returns what the recipe's own pass of the name says; nothing where it has none."""
        stage = self._named(word)
        return {} if stage is None else stage.config.model_dump(mode="json", exclude_unset=True)

    def _stage(self, raw: Any) -> Stage:
        return recipes.staged("graph", raw, path=self.recipe.path, key="graph")


def excludes(stage: Stage) -> bool:
    """Says whether products can be left out of a graph pass."""
    return "exclude" in stage.module.Config.model_fields


def words(graph: Sequence[Any]) -> list[str]:
    """Returns the names of graph passes."""
    return [raw if isinstance(raw, str) else str(next(iter(raw))) for raw in graph]


def _settings(raw: Any) -> dict[str, Any]:
    """Returns the settings of a graph pass, as they are written."""
    return {} if isinstance(raw, str) else next(iter(raw.values())) or {}


def _plain(value: Any) -> str:
    """Returns a setting as a person reads it."""
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


def recipe_at(path: Path, written: dict[str, Any], *, folder: Path) -> Recipe:
    """Returns the recipe `written`, as it will lie at `path`, of files named relative to `folder`."""
    return recipes.of(written | {"folder": str(folder)}, path=path)


def _precisions(recipe: Recipe) -> list[list[Any]]:
    """Returns the recipe's graph passes, and those of them that do not quantise."""
    own = recipe.raw.get("graph", [])
    plain = [raw for raw, stage in zip(own, recipe.graph, strict=True) if not excludes(stage)]
    return [own, plain]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
