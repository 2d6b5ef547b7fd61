"""The recipe in the variants that are compared."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from tritonpress_server import Settings, TritonServer

from tritonpress_generator import recipe as recipes
from tritonpress_generator.bench.in_process import InProcess
from tritonpress_generator.bench.messages import Messages, load
from tritonpress_generator.bench.texts import Request, with_mixed_lengths
from tritonpress_generator.build import Built, build_recipe
from tritonpress_generator.build_report import lengths_line
from tritonpress_generator.forms import Form, Source, compile_forms
from tritonpress_generator.progress import Progress
from tritonpress_generator.recipe import Recipe, Stage
from tritonpress_generator.repository import read_config
from tritonpress_generator.workload import Workload

_KEEPS_FP32 = "fuse"
"""The graph pass of which that is so."""


class Bench:
    """A recipe in several layouts, with its own graph passes (precision `own`), or with the FP32 ones alone.

    Each variant is built when it is first asked for, and served from when it is first sent requests: what is loaded
    and not asked waits without using a core.
    """

    def __init__(
        self, recipe_path: Path, stack: ExitStack, *, rounds: int, slice_s: float, data: Path | None = None
    ) -> None:
        """Loads the recipe's workload.

        Args:
            recipe_path: The recipe.
            stack: Ends the server, and removes what was built.
            rounds: How often each slice is repeated.
            data: The folder of what the recipe's passes train and measure on; default: the recipe's.
            slice_s: How long an engine's slice is; the others' are multiples of it.

        Raises:
            InputError: The recipe, the checkpoint or the data is at fault, or a pass cannot be applied.
        """
        self.rounds = rounds
        self.slice_s = slice_s
        self._stack = stack
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritonpress-bench-")))
        self.repository = folder / "repository"
        recipe = recipes.load(recipe_path)
        # What is asked here may be longer than what a client may ask.
        recipe = replace(recipe, serve=recipe.serve.model_copy(update={"too_long": "cut"}))
        say = Progress()
        # What a pass has learnt is there for all variants.
        self._data, self._work = data, folder / "trained"
        self.uncompressed = with_mixed_lengths(Workload.load(recipe, say), folder / "samples.txt")
        self._material = self.uncompressed.material(data, self._work)
        passed = self.uncompressed.passed(self._material, say)
        *_, self.workload = self.uncompressed, *(changed for _, _, changed in passed)
        self.recipe = self.workload.recipe
        self.texts = self.workload.samples()
        fp32 = tuple(stage for stage in recipe.graph if stage.word == _KEEPS_FP32)
        self.graphs = {"fp32": fp32} | ({_precision(recipe.graph): recipe.graph} if recipe.graph != fp32 else {})
        self.own = list(self.graphs)[-1]
        self.layouts = recipes.layouts_of(recipe.task, recipe.engine)
        self._forms: dict[str, dict[str, Form]] = {}
        self._built: dict[tuple[str, str], Built] = {}
        self._lengths: dict[str, tuple[Stage, ...]] = {}
        self._served: set[str] = set()

    @cached_property
    def source(self) -> Source:
        """What the forms of the model are made of."""
        return self.workload.source(material=self._material)

    @cached_property
    def server(self) -> TritonServer:
        """Serves what is loaded into it."""
        return self._stack.enter_context(TritonServer(self.repository, models=(), settings=Settings(drain_s=0)))

    def forms(self, precision: str) -> dict[str, Form]:
        """Returns the model in every form of its lengths that it has."""
        if precision not in self._forms:
            self._forms[precision] = compile_forms(self._of_all_lengths(self.graphs[precision]), self.source)
        return self._forms[precision]

    def uncompressed_forms(self) -> dict[str, Form]:
        """Returns the model without the recipe's passes, with its graph passes, in every form."""
        source = self.uncompressed.source(material=self._material)
        return compile_forms(self._of_all_lengths(self.recipe.graph), source)

    def built(self, precision: str, layout: str) -> Built:
        """Returns the variant's build; all layouts have the lengths that were measured for the first."""
        if (precision, layout) not in self._built:
            built = build_recipe(self._variant(precision, layout), self.repository, data=self._data, work=self._work)
            self._built[precision, layout] = built
            if precision not in self._lengths:
                entry = built.manifest["lengths"]
                self._lengths[precision] = tuple(s for s in self.recipe.lengths if s.word == entry["form"])
                print(f"{precision.upper()}: {lengths_line(entry)}\n", flush=True)
        return self._built[precision, layout]

    def in_process(self, precision: str) -> InProcess:
        """Returns the work of a served request in process, of the variant's own files."""
        step = self.built(precision, "single").manifest["steps"]["model"]
        return InProcess.from_folder(self.repository / step / "1", self.recipe)

    def messages(self, precision: str, layout: str, requests: Sequence[Request]) -> Messages:
        """Returns `requests` to the variant, which is served from now on."""
        manifest = self.built(precision, layout).manifest
        name = manifest["workload"]
        if name not in self._served:
            ensemble = read_config(self.repository / name).ensemble_scheduling
            loaded_with_it = {step.model_name for step in ensemble.step}
            # Triton knows of no step that another calls. Loading one that it knows of would load it twice, and the
            # first of the two would end while the second is measured.
            for model in (*(step for step in manifest["steps"].values() if step not in loaded_with_it), name):
                load(self.server.grpc_url, model)
            self._served.add(name)
        return Messages(self.server.grpc_url, name, requests)

    def _of_all_lengths(self, graph: tuple[Stage, ...]) -> Recipe:
        lengths = recipes.lengths_of("auto", self.recipe.engine, path=self.recipe.path)
        return replace(self.recipe, graph=graph, lengths=lengths)

    def _variant(self, precision: str, layout: str) -> Recipe:
        return replace(
            self.recipe,
            name=f"{self.recipe.name}_{precision}_{layout}",
            graph=self.graphs[precision],
            layout=recipes.layout_of(layout, self.recipe.task, self.recipe.engine, path=self.recipe.path),
            lengths=self._lengths.get(precision, self.recipe.lengths),
        )


def _precision(graph: tuple[Stage, ...]) -> str:
    """Returns what graph passes make of FP32."""
    config = next(stage.config for stage in reversed(graph) if stage.word != _KEEPS_FP32)
    name: str = getattr(config, "precision", f"int{getattr(config, 'bits', 8)}")
    return name
