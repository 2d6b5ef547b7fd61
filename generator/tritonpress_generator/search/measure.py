"""Makes candidates and measures them: the metric on held-out examples, and times in turn with other candidates."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tritonpress_generator import form_choice, forms, repository
from tritonpress_generator import recipe as recipes
from tritonpress_generator.answering import alone
from tritonpress_generator.build import build_recipe
from tritonpress_generator.compression import Material
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import GateError, InputError
from tritonpress_generator.examples import finite
from tritonpress_generator.graph import NO_MATERIAL
from tritonpress_generator.infer import Infer
from tritonpress_generator.kept import Kept
from tritonpress_generator.progress import Progress
from tritonpress_generator.recipe import Stage
from tritonpress_generator.sampling import spread
from tritonpress_generator.search.rounds import Rounds
from tritonpress_generator.search.settings import Config
from tritonpress_generator.search.space import Candidate, Space, excludes, recipe_at
from tritonpress_generator.search.training_time import TrainingTime, measured
from tritonpress_generator.steps.tokenizer.sequences import Batching, Sequences
from tritonpress_generator.structure import product_pattern
from tritonpress_generator.workload import Workload

_MOST_EXAMPLES = 1000
_POINTS_IN_TURN = 2
"""As are while a search goes on: a candidate and the best so far, beside the reference."""
_FEW_TEXTS = 32
"""How many texts say which layer a precision disturbs the most."""
GRAPH = "graph"
"""What the graph passes are called among the stages."""
_REMEDY = "check the checkpoint, and what the recipe's passes train with"


@dataclass(frozen=True)
class Made:
    """A candidate's engine in a folder of its own, and what is needed to ask it."""

    folder: Path
    size_bytes: int
    """Of the engine's files."""
    stages: dict[str, float]
    """The metric on a few examples: of the checkpoint (`""`), after each pass, and of the engine (`GRAPH`)."""
    batching: dict[str, Any]
    samples: Sequences
    trained_s: float = 0.0
    """How long its distillation has taken."""

    @property
    def engine(self) -> Path:
        """Triton's version folder."""
        return self.folder / "1"


class Workshop:
    """Makes and measures the candidates of a space; an engine lies in its folder until it is thrown away."""

    def __init__(self, workload: Workload, material: Material, space: Space, config: Config, folder: Path) -> None:
        self._workload, self._material, self._space, self._config = workload, material, space, config
        self._folder = folder
        self._quiet = Progress(shown=False)
        # Where the builds of its points look too, and what is thrown away is not.
        self._kept = Kept(None if material.work is None else material.work / "kept")
        self._passed: dict[str, tuple[Workload, dict[str, float], float]] = {}

    def baseline(self) -> float:
        """Returns the checkpoint's metric on the held-out examples, 1000 at most.

        Raises:
            InputError: It is no number above 0, or there are no examples.
        """
        metric = self._workload.recipe.finetune.module.METRIC
        score, _ = self._of_checkpoint
        if not score > 0:
            raise InputError(
                f"search: {metric} of the checkpoint must be above 0 on the held-out examples, is {score:g}; "
                "check the checkpoint and data.validation"
            )
        return score

    def training_s(self, epochs: float) -> float:
        """Returns how long so many epochs of a candidate's distillation take, in s, by a few steps; of none, 0.

        Raises:
            InputError: There are no examples, or one of them cannot be read.
        """
        return self._training_time(epochs) if epochs else 0.0

    @cached_property
    def _training_time(self) -> TrainingTime:
        _, evaluation_s = self._of_checkpoint
        return measured(self._material, self._space.distillation, evaluation_s=evaluation_s)

    @cached_property
    def _of_checkpoint(self) -> tuple[float, float]:
        """The checkpoint's metric on the held-out examples, and the seconds that it took."""
        self._material.decisive(_MOST_EXAMPLES)  # what the original is asked once is no part of an evaluation
        began = time.perf_counter()
        score = self._scored(self._workload.baseline, self._workload.tokenizer, _MOST_EXAMPLES)
        return score, time.perf_counter() - began

    def pattern(self, layer: int) -> str:
        """Returns what matches the names of a layer's products."""
        return product_pattern(self._workload.model, layer)

    def label(self, candidate: Candidate) -> str:
        """Returns what a candidate is, in few words."""
        return self._space.label(candidate)

    def written(self, candidate: Candidate) -> dict[str, Any]:
        """Returns a candidate's recipe, as it is written."""
        return self._space.written(candidate, self.pattern)

    def recipe(self, candidate: Candidate) -> recipes.Recipe:
        """Returns a candidate's recipe."""
        own = self._space.recipe
        return recipe_at(own.path, self.written(candidate), folder=own.folder.resolve())

    def made(self, candidate: Candidate) -> Made:
        """Returns the candidate's engine, which is made unless it is there.

        Raises:
            InputError: A pass cannot be applied as the candidate says, or the answers are no numbers.
        """
        folder = self._folder / candidate.key
        if not folder.exists():
            new = folder.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            self._make(candidate, new)
            new.replace(folder)
        known = json.loads((folder / "made.json").read_text(encoding="utf-8"))
        samples = Sequences(**known.pop("samples"))
        return Made(folder, samples=samples, **known)

    def throw_away(self, others: set[str]) -> None:
        """Removes all engines but those of the candidates with the keys `others`."""
        for folder in self._folder.glob("*"):  # there is no folder where all that was asked for was known
            if folder.name not in others:
                shutil.rmtree(folder)

    def score(self, candidate: Candidate) -> float:
        """Returns the metric of the candidate's engine on the held-out examples, 1000 at most.

        Raises:
            InputError: As `made`.
        """
        made = self.made(candidate)
        tokenizer = Tokenizer.from_file(str(made.folder / "tokenizer.json"))
        return self._scored(self._padded(candidate, made.engine), tokenizer, _MOST_EXAMPLES)

    def built(self, candidate: Candidate) -> dict[str, Any]:
        """Builds the candidate's recipe as `tritonpress build` would; returns its hash, the gate's verdict, its size.

        What the gate refuses has the reason in their place, under `gate`, the pass that broke it under `stage`, and
        what may be done under `remedy`.
        """
        scratch = self._folder.parent / "built"
        shutil.rmtree(scratch, ignore_errors=True)
        material = self._material
        try:
            manifest = build_recipe(
                self.recipe(candidate), scratch, data=material.folder, work=material.work, progress=self._quiet
            ).manifest
        except GateError as exc:
            return {"gate": exc.reason, "stage": exc.stage, "remedy": exc.remedy}
        shutil.rmtree(scratch)
        size = repository.size_bytes(manifest)
        return {"build": manifest["build"], "verdict": manifest["gate"], "size_bytes": size}

    def timing_s(self, candidates: int) -> float:
        """Returns how long it takes to time so many candidates in turn, besides loading them."""
        return 2 * (self._config.rounds + 1) * candidates * self._config.slice_s

    def front_s(self, points: int) -> float:
        """Returns how long `timed_front` takes of so many points, besides loading them."""
        return self.timing_s(points + math.ceil(points / _POINTS_IN_TURN))

    def timed_front(self, reference: Candidate, points: Sequence[Candidate]) -> dict[str, tuple[Rounds, Rounds]]:
        """Returns how fast each point is, and the reference in turn with it, by key.

        A few of them run in turn, so that no more engines are in memory than while they were searched.

        Raises:
            InputError: As `made`.
        """
        found: dict[str, tuple[Rounds, Rounds]] = {}
        for first in range(0, len(points), _POINTS_IN_TURN):
            group = {point.key: point for point in points[first : first + _POINTS_IN_TURN]}
            rounds = self.timed({"": reference} | group)
            found |= {key: (rounds[key], rounds[""]) for key in group}
        return found

    def timed(self, candidates: Mapping[str, Candidate]) -> dict[str, Rounds]:
        """Returns how fast each candidate is; all of them run in turn, so that what disturbs one disturbs all.

        Raises:
            InputError: As `made`.
        """
        engine, size = self._space.recipe.engine, self._space.recipe.serve.max_batch_size
        together, by_one = {}, {}
        for name, candidate in candidates.items():
            made = self.made(candidate)
            batching, load = Batching(**made.batching), partial(engine.module.load, made.engine, engine.config)
            workers = [load(threads=count) for count in engine.module.threads(engine.config)]
            together[name] = form_choice.Candidate(batching, workers), form_choice.batches_of(made.samples, size)
            by_one[name] = form_choice.Candidate(batching, [load()]), form_choice.batches_of(made.samples, 1)
        rates, rates_by_one = self._in_turn(together), self._in_turn(by_one)
        return {name: Rounds(rates[name], 1e3 / rates_by_one[name]) for name in candidates}

    def _in_turn(
        self, candidates: Mapping[str, tuple[form_choice.Candidate, Sequence[Sequences]]]
    ) -> dict[str, NDArray[np.float64]]:
        """Returns the texts per second of each candidate in each round, after one that does not count."""
        rates: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(self._config.rounds + 1):
            for name, (candidate, batches) in candidates.items():
                rates[name].append(form_choice.rate(candidate, batches, self._config.slice_s))
        return {name: np.array(values[1:]) for name, values in rates.items()}

    def most_sensitive(self, candidate: Candidate) -> int | None:
        """Returns the layer without whose quantisation the answers come the nearest to FP32's; None if there is none.

        Half of the layers at most are left out of a precision.
        """
        recipe = self.recipe(candidate)
        left = [layer for layer in range(candidate.layers) if layer not in candidate.excluded]
        if not any(map(excludes, recipe.graph)) or len(left) <= candidate.layers / 2:
            return None
        workload, _, _ = self._after_passes(candidate)
        source = workload.source(material=self._material)
        lengths = recipe.lengths[0].module
        fp32 = forms.exported(recipe, recipe.lengths[0], source)
        feeds = spread([feed for _, feed in alone(source.calibration)], _FEW_TEXTS)
        native = [lengths.native(feed, workload.signature) for feed in feeds]
        wanted = [workload.infer(feed) for feed in feeds]
        distances: dict[int, float] = {}
        for layer in left:
            trial = self.recipe(replace(candidate, excluded=tuple(sorted((*candidate.excluded, layer)))))
            graph = fp32
            try:
                for stage in trial.graph:
                    graph = stage.module.apply(graph, _unheld(stage), native, NO_MATERIAL)
            except InputError:
                continue  # of layers that share their weights, or whose names are others, none can be left out
            session = session_infer(forms.plain(graph).SerializeToString())
            infer = lengths.as_padded(session, workload.signature)
            distances[layer] = sum(
                float(np.square(infer(feed)[name] - one[name]).sum())
                for feed, one in zip(feeds, wanted, strict=True)
                for name in one
            )
        return min(distances, key=lambda layer: distances[layer]) if distances else None

    def _make(self, candidate: Candidate, folder: Path) -> None:
        """Writes the candidate's engine, and what `Made` says of it, into `folder`."""
        recipe = self.recipe(candidate)
        workload, stages, trained_s = self._after_passes(candidate)
        # By its own recipe it is known what was kept, as in the build of its point.
        source = workload.source(self._kept, replace(self._material, recipe=recipe))
        (form,) = forms.compile_forms(recipe, source).values()
        self._kept.save(others=True)
        recipe.engine.module.build(form.rungs(recipe.engine), folder / "1", recipe.engine.config, form.asked)
        workload.tokenizer.save(str(folder / "tokenizer.json"))
        few = self._scored(form.loaded(recipe.engine, folder / "1"), workload.tokenizer, self._config.examples)
        samples = {name: getattr(source.samples, name) for name in ("ids", "counts", "segments")}
        known = {
            "size_bytes": sum(path.stat().st_size for path in (folder / "1").rglob("*") if path.is_file()),
            "stages": {**stages, GRAPH: few},
            "trained_s": trained_s,
            "batching": form.encoding["batching"],
            "samples": samples,
        }
        (folder / "made.json").write_text(json.dumps(known), encoding="utf-8")

    def _after_passes(self, candidate: Candidate) -> tuple[Workload, dict[str, float], float]:
        """Returns the workload after a candidate's passes.

        Beside it the metric on a few examples before and after each, and how long the distillation has taken.
        """
        passes = json.dumps(self._space.passes(candidate))
        if passes not in self._passed:
            workload = replace(self._workload, recipe=self.recipe(candidate))
            stages = {"": self._scored(workload.infer, workload.tokenizer, self._config.examples)}
            trained_s = 0.0
            for stage, compressed, changed in workload.passed(self._material, self._quiet):
                workload = changed
                trained_s = 60.0 * compressed.report.get("distill", {}).get("minutes", 0.0)
                stages[stage.word] = self._scored(workload.infer, workload.tokenizer, self._config.examples)
            # Candidates that differ in their precision alone come one after the other; more models are not kept.
            self._passed = {**dict([*self._passed.items()][-1:]), passes: (workload, stages, trained_s)}
        workload, stages, trained_s = self._passed[passes]
        return replace(workload, recipe=self.recipe(candidate)), dict(stages), trained_s

    def _padded(self, candidate: Candidate, engine_folder: Path) -> Infer:
        """Returns a candidate's engine; takes a padded batch."""
        engine, path = self._space.recipe.engine, self._space.recipe.path
        (lengths,) = recipes.lengths_of(json.loads(candidate.lengths), engine, path=path)
        load = engine.module.load(engine_folder, engine.config)
        infer: Infer = lengths.module.as_padded(load, self._workload.signature)
        return infer

    def _scored(self, infer: Infer, tokenizer: Tokenizer, most: int) -> float:
        return self._material.score(finite(infer, where="search", remedy=_REMEDY), tokenizer, most)


def _unheld(stage: Stage) -> Any:
    """Returns the settings of a graph pass that holds itself to no metric, by which it would leave out layers too."""
    held = "keep" in type(stage.config).model_fields
    return stage.config.model_copy(update={"keep": None}) if held else stage.config
