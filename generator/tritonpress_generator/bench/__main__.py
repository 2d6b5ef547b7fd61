"""`python -m tritonpress_generator.bench RECIPE` (`make bench`)."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tritonpress_server import ServerError, TritonServer

from tritonpress_generator import export, forms, plugins, recipe
from tritonpress_generator.bench.engine import compare_engines
from tritonpress_generator.bench.lengths import compare_lengths
from tritonpress_generator.bench.road import print_road
from tritonpress_generator.bench.served import InProcess, Messages, compare_served, steady_latency
from tritonpress_generator.bench.texts import mixed_texts
from tritonpress_generator.build import Built, build_recipe, processor, text_encoder
from tritonpress_generator.checkpoint import load_encoder, load_tokenizer, resolve
from tritonpress_generator.cli import lengths_line
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import GeneratorError
from tritonpress_generator.steps.tokenizer.text_encoder import TextEncoder

SECTIONS = ("engine", "lengths", "served", "steady", "road")
_TEXTS = 512


class Bench:
    """The recipe in the variants that are compared; each is built when it is first asked for."""

    def __init__(self, recipe_path: Path, folder: Path, *, rounds: int, slice_s: float) -> None:
        """Reads the recipe and makes the texts of mixed lengths."""
        self.rounds = rounds
        self.slice_s = slice_s
        self.repository = folder / "repository"
        loaded = recipe.load(recipe_path)
        self.checkpoint = resolve(loaded.checkpoint, base=recipe_path.parent)
        self.tokenizer: Tokenizer = load_tokenizer(self.checkpoint)
        self.data = loaded.task.module.load_data(loaded)
        self.texts = mixed_texts(self.tokenizer, self.data.texts, _TEXTS)
        samples = folder / "samples.txt"
        samples.write_text("\n".join(self.texts), encoding="utf-8")
        self.recipe = replace(loaded, serve=loaded.serve.model_copy(update={"samples": str(samples)}))
        self._built: dict[str, Built] = {}
        self._lengths: dict[str, Any] = {}

    def variant(self, precision: str, layout: str) -> recipe.Recipe:
        """Returns the recipe with its own graph passes, or with the FP32 ones alone, in a layout of the steps."""
        graph = self.recipe.graph
        return replace(
            self.recipe,
            name=f"{self.recipe.name}_{precision}_{layout}",
            graph=graph if precision == "int8" else tuple(stage for stage in graph if stage.word != "quantize"),
            layout=plugins.find("layouts", layout, path="bench"),
        )

    def built(self, precision: str, layout: str) -> Built:
        """Returns the variant's build; all layouts have the lengths that were measured for the first."""
        key = f"{precision}_{layout}"
        if key not in self._built:
            variant = self.variant(precision, layout)
            if precision in self._lengths:
                form = self._lengths[precision]["form"]
                variant = replace(variant, lengths=tuple(stage for stage in variant.lengths if stage.word == form))
            self._built[key] = build_recipe(variant, self.repository)
            if precision not in self._lengths:
                self._lengths[precision] = self._built[key].manifest["lengths"]
                print(f"{precision.upper()}: {lengths_line(self._lengths[precision])}\n", flush=True)
        return self._built[key]

    def local(self, precision: str) -> InProcess:
        """Returns the work of a served request in process, of the variant's own files."""
        built = self.built(precision, "single")
        folder = self.repository / built.manifest["steps"]["model"] / "1"
        engine = self.recipe.engine
        step = import_module(f"tritonpress_generator.steps.{self.recipe.task.word}.postprocessor")
        return InProcess(
            encoder=TextEncoder.from_folder(folder),
            postprocess=step.Postprocessor.from_folder(folder),
            instances=[
                engine.module.load(folder, engine.config, threads=count)
                for count in engine.module.threads(engine.config)
            ],
            whole=engine.module.load(folder, engine.config),
        )


def engine_section(bench: Bench) -> Any:
    """The served engine's padded form against torch and ONNX Runtime."""
    variant = replace(bench.variant("int8", "single"), lengths=recipe.lengths_of("exact", path=bench.recipe.path))
    task, engine = variant.task, variant.engine
    model, signature = task.module.head(load_encoder(bench.checkpoint), bench.checkpoint, task.config)
    exported, _ = task.module.head(
        load_encoder(bench.checkpoint, attention=export.ATTENTION), bench.checkpoint, task.config
    )
    form = _forms(bench, variant)["exact"]
    engines = {
        "torch eager FP32": export.torch_infer(model, signature),
        "ONNX Runtime FP32": session_infer(export.export(exported, signature).SerializeToString()),
        "served engine": form.infer(engine),
    }
    return compare_engines(engines, bench.rounds, bench.slice_s)


def lengths_section(bench: Bench) -> Any:
    """Ragged, buckets and exact lengths against padding."""
    encoder = text_encoder(bench.recipe, bench.tokenizer, max_bytes=1 << 20)
    rows = encoder.encode([text.encode() for text in bench.texts])
    figures = {}
    for precision in ("fp32", "int8"):
        variant = replace(bench.variant(precision, "single"), lengths=recipe.lengths_of("auto", path=bench.recipe.path))
        figures[precision] = compare_lengths(
            _forms(bench, variant),
            variant.engine,
            bench.tokenizer,
            rows,
            name=precision.upper(),
            rounds=bench.rounds,
            slice_s=bench.slice_s,
        )
    return figures


def served_section(bench: Bench) -> Any:
    """The share of the in-process throughput that is served."""
    return {
        precision: _with_server(
            bench,
            precision,
            lambda served, local, precision=precision: compare_served(  # type: ignore[misc]
                served,
                local,
                bench.recipe.task.module.INPUT,
                bench.texts,
                name=f"{precision.upper()}, mixed lengths",
                rounds=max(3, bench.rounds // 2),
            ),
        )
        for precision in ("fp32", "int8")
    }


def steady_section(bench: Bench) -> Any:
    """The latency at 60 % of the highest throughput."""
    return {
        precision: _with_server(
            bench,
            precision,
            lambda served, local, precision=precision: steady_latency(  # type: ignore[misc]
                served["single"], local, bench.texts, name=f"{precision.upper()}, mixed lengths", seconds=20
            ),
        )
        for precision in ("fp32", "int8")
    }


def road_section(bench: Bench) -> Any:
    """Where the time of a request goes."""
    built = {layout: bench.built("int8", layout) for layout in ("single", "ensemble")}
    workloads = {layout: (bench.variant("int8", layout).name, built[layout].manifest["steps"]) for layout in built}
    local = bench.local("int8")
    with TritonServer(bench.repository, models=[name for name, _ in workloads.values()]) as server:
        return print_road(server, workloads, local, bench.recipe.task.module.INPUT, bench.texts)


def _forms(bench: Bench, variant: recipe.Recipe) -> dict[str, forms.Form]:
    model, signature = variant.task.module.head(load_encoder(bench.checkpoint), bench.checkpoint, variant.task.config)
    encoder = text_encoder(variant, bench.tokenizer, max_bytes=1 << 20)
    rows = encoder.encode([text.encode() for text in bench.texts])
    baseline = export.torch_infer(model, signature)
    return forms.compile_forms(variant, bench.checkpoint, baseline, encoder, bench.data, rows)


def _with_server(bench: Bench, precision: str, measure: Callable[[dict[str, Messages], InProcess], Any]) -> Any:
    names = {}
    for layout in ("single", "ensemble"):
        bench.built(precision, layout)
        names[layout] = bench.variant(precision, layout).name
    local = bench.local(precision)
    with TritonServer(bench.repository, models=list(names.values())) as server, ExitStack() as stack:
        ask = partial(Messages, server.grpc_url, input_name=bench.recipe.task.module.INPUT, texts=bench.texts)
        return measure({layout: stack.enter_context(ask(name)) for layout, name in names.items()}, local)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="tritonpress_generator.bench", description="Measures what a recipe builds.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections (default: all)")
    parser.add_argument("--rounds", type=int, default=15, help="how often each slice is repeated (default: 15)")
    parser.add_argument("--slice-s", type=float, default=0.3, help="length of one engine slice in s (default: 0.3)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    print(f"{processor()}, {len(os.sched_getaffinity(0))} cores; {options.rounds} rounds; median [middle 80 %]\n")
    figures = {}
    try:
        with tempfile.TemporaryDirectory(prefix="tritonpress-bench-") as folder:
            bench = Bench(options.recipe, Path(folder), rounds=options.rounds, slice_s=options.slice_s)
            for section in options.only:
                figures[section] = globals()[f"{section}_section"](bench)
    except (GeneratorError, ServerError) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return getattr(exc, "exit_status", 2)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
