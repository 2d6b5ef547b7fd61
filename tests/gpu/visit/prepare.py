"""Makes what travels to the GPU, where torch and transformers fit for the export are: graphs, answers, a repository.

python -m visit prepare .gpu/visit [--shapes minilm base large] [--recipes generator/recipes/question_answering.yaml]

weights.json, weights/            `travelling.py`
shapes/NAME/model.RUNG.onnx       a random BERT of that shape as the project exports it, for TensorRT 8.5
shapes/NAME/answers.npz           what ONNX Runtime's CPU provider answers to it, FP32 and INT8
workloads/NAME/repository         a recipe's model repository, its plan pending, as the generator builds it
workloads/NAME/feeds.npz          what the gate's data become, and the answers of the FP32 graph
workloads/NAME/requests.json      the labelled data as requests
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import transformers as hf
import yaml
from tritonpress_generator import build, export, repository
from tritonpress_generator import recipe as recipes
from tritonpress_generator.engines import tensorrt
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.exchange import exchange_attention
from tritonpress_generator.graph import qdq
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.onnx_graph import normalized
from tritonpress_generator.plans import pending
from tritonpress_generator.progress import Progress
from tritonpress_generator.signature import SEGMENTS, Output, Signature
from tritonpress_generator.task_head import TokenHead
from tritonpress_generator.workload import Workload

from visit.shapes import LENGTHS, SHAPES, Shape
from visit.travelling import Weights, rounded

RELEASE = "23.03"
"""NVIDIA's container with TensorRT 8.5.3, which the kit has."""
_KEEP_ALL = 1e-6
_ASKED = ((2, 32), (1, 128), (1, 384))
_SEEDS = {name: 1000 * (number + 1) for number, name in enumerate(SHAPES)}
RUNGS = ("fp32", "int8")
"""The graphs; FP16 is made of the FP32 graph by a flag."""


def shape(name: str, out: Path) -> None:
    """Writes the graphs of the shape `name` and their answers below `out`."""
    weights = Weights(out)
    model, _ = random_encoder(SHAPES[name])
    weights.randomise(model, _SEEDS[name])
    samples = [asked(SHAPES[name], 1, length, seed=length) for length in (8, 24)]
    config = qdq.Config(calibration="min_max", smooth=False)
    ladder = tensorrt.rungs(
        model, qdq.apply(model, config, samples), tensorrt.Config(release=RELEASE, precision="fp32")
    )
    folder = out / "shapes" / name
    folder.mkdir(parents=True, exist_ok=True)
    answers: dict[str, Array] = {}
    for rung in RUNGS:
        infer = session_infer(ladder[rung].SerializeToString())
        for batch, length in _ASKED:
            feed = asked(SHAPES[name], batch, length, seed=1)
            for key, tensor in {**feed, **infer(_as_int32(feed))}.items():
                answers[f"{batch}x{length}/{rung}/{key}"] = tensor
        weights.take_out(ladder[rung])
        onnx.save(ladder[rung], folder / f"model.{rung}.onnx")
    np.savez_compressed(folder / "answers.npz", **answers)


def random_encoder(shape: Shape) -> tuple[onnx.ModelProto, Signature]:
    """Returns the export of a BERT of `shape` for question answering, and what it reads and gives."""
    config = hf.BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.positions,
    )
    torch.manual_seed(0)
    bert: Any = hf.BertForQuestionAnswering(config)
    head = TokenHead(bert.eval(), lambda answer: (answer.start_logits, answer.end_logits)).eval()
    exchange_attention(head.encoder, export.ATTENTION)
    signature = Signature({"start": Output.per_token(), "end": Output.per_token()}, segments=True)
    return normalized(export.export(head, signature)), signature


def asked(shape: Shape, batch: int, length: int, seed: int) -> dict[str, Array]:
    """Returns a padded batch, INT64 `(batch, length)`; all but the first sequence end earlier."""
    generator = np.random.default_rng(seed)
    ends = np.maximum(1, length - 5 * np.arange(batch))
    mask = (np.arange(length) < ends[:, None]).astype(np.int64)
    ids = generator.integers(0, shape.vocabulary, (batch, length)) * mask
    segments = (np.arange(length) >= length // 3) * mask
    return {"input_ids": ids, "attention_mask": mask, SEGMENTS: segments}


def workload(recipe_path: Path, out: Path, *, release: str = RELEASE) -> None:
    """Writes the repository of a recipe, built for TensorRT on a machine without a GPU, and what its plan is asked.

    The weights of its graphs are rounded to FP16, so that they travel in half the bytes; answers are of these.
    """
    recipe = for_tensorrt(recipe_path, release)
    folder = out / "workloads" / recipe.name
    shutil.rmtree(folder, ignore_errors=True)
    repository_folder = folder / "repository"
    repository_folder.mkdir(parents=True)
    # Every rung travels: what each of them keeps is measured of what it answers there (`gate.py`).
    every = replace(recipe, gate=recipe.gate.model_copy(update={"keep": _KEEP_ALL}))
    build.build_recipe(every, repository_folder, progress=Progress())
    weights = Weights(out)
    manifest = repository.read_manifest(repository_folder, recipe.name)
    (version,) = pending.folders(repository_folder, manifest)
    graphs = {path: rounded(onnx.load(path)) for path in sorted(version.glob("model.*.onnx"))}
    loaded = Workload.load(recipe, Progress())
    recorded = Recorded(session_infer(graphs[version / "model.fp32.onnx"].SerializeToString()))
    loaded.answers(recorded)
    recorded.save(folder / "feeds.npz")
    for path, graph in graphs.items():
        weights.take_out(graph)
        onnx.save(graph, path)
    columns = loaded.data.inputs
    requests = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (folder / "requests.json").write_text(json.dumps(requests), encoding="utf-8")


def for_tensorrt(path: Path, release: str) -> recipes.Recipe:
    """Returns the recipe at `path` with TensorRT as its engine, `qdq`, and the borders that are measured.

    Ranges are calibrated as the recipe's `quantize` says, if it has one.
    """
    recipe = recipes.load(path)
    text = yaml.safe_load(recipe.text)
    longest = recipe.serve.max_length
    borders = [*(length for length in LENGTHS if length < longest), longest]
    quantize = next((stage.config for stage in recipe.graph if stage.word == "quantize"), None)
    qdq_settings = {} if quantize is None else {"calibration": quantize.calibration}
    text |= {"engine": {"tensorrt": {"release": release}}, "graph": [{"qdq": qdq_settings}]}
    text["serve"] |= {"lengths": borders, "max_batch_size": 32}
    text["serve"].pop("steps", None)
    # What it names lies where it did.
    return recipes.of(text, path=path)


class Recorded:
    """An `Infer` that keeps what it was asked and what it answered, each feed once."""

    def __init__(self, infer: Infer) -> None:
        self._infer = infer
        self.feeds: dict[bytes, tuple[Mapping[str, Array], dict[str, Array]]] = {}

    def __call__(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        answer = self._infer(_as_int32(feed))
        self.feeds[feed["input_ids"].tobytes()] = (feed, answer)
        return answer

    def save(self, path: Path) -> None:
        """Writes both: `NUMBER/in/NAME` and `NUMBER/out/NAME`."""
        arrays: dict[str, Array] = {}
        for number, (feed, answer) in enumerate(self.feeds.values()):
            arrays |= {f"{number}/in/{name}": tensor.astype(np.int32) for name, tensor in feed.items()}
            arrays |= {f"{number}/out/{name}": tensor for name, tensor in answer.items()}
        np.savez_compressed(path, **arrays)


def _as_int32(feed: Mapping[str, Array]) -> dict[str, Array]:
    return {name: tensor.astype(np.int32) for name, tensor in feed.items()}
