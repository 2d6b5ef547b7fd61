"""The work of a served request, without a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tritonpress_generator.answering import Answers, Postprocessor
from tritonpress_generator.bench.texts import Request
from tritonpress_generator.bench.timing import Ask
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.steps.single.pipeline import Pipeline
from tritonpress_generator.steps.tokenizer.sequences import Batching, Sequences
from tritonpress_generator.steps.tokenizer.served import from_folder

PARTS = ("tokenizer", "engine", "postprocessing")


@dataclass(frozen=True)
class InProcess:
    """What the single step is made of."""

    encode_columns: Callable[..., Sequences]
    batching: Batching
    of_tokens: Sequence[str]
    """The engine's outputs of a value a token."""
    postprocess: Postprocessor
    instances: Sequence[Infer]
    """Engines with the instances' threads."""
    whole: Infer
    """One engine with all cores."""

    @classmethod
    def from_folder(cls, folder: Path, recipe: Recipe) -> InProcess:
        """Returns what is in the version folder of a single step of `recipe`."""
        engine = recipe.engine
        threads = engine.module.threads(engine.config)
        step: Any = import_module(f"tritonpress_generator.steps.{recipe.task.word}.postprocessor")
        served = from_folder(folder)
        return cls(
            served.encoder.encode,
            served.batching,
            served.of_tokens,
            step.Postprocessor.from_folder(folder),
            [engine.module.load(folder, engine.config, threads=count) for count in threads],
            engine.module.load(folder, engine.config),
        )

    def encode(self, request: Request) -> Sequences:
        """Returns what the texts of `request` become."""
        return self.encode_columns(*request.values())

    def answering(self, engine: Infer) -> Callable[[Request], Answers]:
        """Returns what answers requests with `engine`."""
        pipeline = self._pipeline(engine)
        return lambda request: pipeline(self.encode(request), request)

    def engine_alone(self, requests: Sequence[Request]) -> Ask:
        """Returns the bare engine of one instance on what each of `requests` becomes."""
        feeds: list[list[dict[str, Array]]] = [
            [feed for _, feed in self.batching.executions(self.encode(request))] for request in requests
        ]
        engine = self.instances[0]
        return lambda _, turn: [engine(feed) for feed in feeds[turn % len(feeds)]]

    def parts_ms(self, request: Request) -> list[float]:
        """Returns the ms of each of `PARTS` of the work of `request`, in one instance."""
        pipeline = self._pipeline(self.instances[0])
        times = [time.perf_counter()]
        sequences = self.encode(request)
        times.append(time.perf_counter())
        pieces = sequences.pieces()
        outputs = pipeline.outputs(sequences, pieces["lengths"])
        times.append(time.perf_counter())
        self.postprocess(outputs, pieces, request)
        times.append(time.perf_counter())
        parts: list[float] = (np.diff(times) * 1e3).tolist()
        return parts

    def _pipeline(self, engine: Infer) -> Pipeline:
        return Pipeline(self.batching.executions, partial(map, engine), self.postprocess, of_tokens=self.of_tokens)
