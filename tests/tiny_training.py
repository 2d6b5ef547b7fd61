"""What a tiny training is made of: an encoder without a head, a few dozen labelled examples, and a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.torch import load_file, save_file
from tiny_sources import ADJECTIVES, NOUNS, items, write_checkpoint, write_jsonl, write_recipe
from tritonpress_generator import recipe as recipes
from tritonpress_generator.compression import Compressed, Material
from tritonpress_generator.finetune import Finetuned, finetune
from tritonpress_generator.progress import Progress
from tritonpress_generator.training.distributed import ALONE
from tritonpress_generator.workload import Workload

SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "warmup": 0.1,
    "precision": "fp32",
    "evaluations": 2,
    "seed": 3,
}
"""Enough that every task is learnt in a second or two."""
FILES = {"question_answering": "json", "classification": "tsv", "recommendation": "jsonl"}
TASKS: dict[str, Any] = {
    "question_answering": {"question_answering": {"doc_stride": 8, "max_question_length": 12, "max_answer_length": 6}},
    "classification": "classification",
    "recommendation": {"recommendation": {"catalogue": "catalogue.jsonl", "top_k": 10}},
}
LORA = {"lora": {"rank": 8, "alpha": 16}}
LEARNT = {"epochs": 10}
"""Enough for a classifier to learn something."""
METRICS = {"question_answering": "f1", "classification": "accuracy", "recommendation": "ndcg@10"}


def squad(count: int, seed: int) -> dict[str, Any]:
    """Returns questions for the adjective of a noun; some contexts need two windows of 48 tokens."""
    generator = np.random.default_rng(seed)
    articles: dict[int, list[dict[str, Any]]] = {}
    for number in range(count):
        nouns = generator.permutation(NOUNS)[: generator.integers(1, 8)].tolist()
        adjectives = generator.permutation(ADJECTIVES)[: len(nouns)].tolist()
        context = " ".join(
            f"the {adjective} {noun} for the home ." for adjective, noun in zip(adjectives, nouns, strict=True)
        )
        place = int(generator.integers(len(nouns)))
        answer = {"text": adjectives[place], "answer_start": context.index(f"{adjectives[place]} {nouns[place]}")}
        asked = {"id": f"{seed}-{number}", "question": f"the {nouns[place]}", "answers": [answer]}
        articles.setdefault(number // 4, []).append({"context": context, "qas": [asked]})
    data = [{"title": f"article {number}", "paragraphs": paragraphs} for number, paragraphs in articles.items()]
    return {"version": "1.1", "data": data}


def labelled(count: int, seed: int, *, multi_label: bool) -> str:
    """Returns texts labelled by what is in them, as TSV."""
    generator = np.random.default_rng(seed)
    rows = ["text\tlabel"]
    for _ in range(count):
        adjective, noun = generator.choice(ADJECTIVES), generator.choice(NOUNS)
        kind = "shape" if adjective in ADJECTIVES[:4] else "age"
        room = "kitchen" if noun in NOUNS[:4] else ""
        label = "|".join(filter(None, (kind, room))) if multi_label else kind
        rest = f" {adjective} {noun}" * int(generator.integers(0, 4))
        rows.append(f"a {adjective} {noun}{rest}\t{label}")
    return "\n".join(rows) + "\n"


def queries(count: int, seed: int) -> list[dict[str, object]]:
    """Returns queries that name an item of the catalogue."""
    generator = np.random.default_rng(seed)
    catalogue = items()
    chosen = [catalogue[i] for i in generator.permutation(len(catalogue))[:count]]
    return [{"query": f"the {item['title']}", "relevant": {item["id"]: 1}} for item in chosen]


def write_examples(path: Path, task: str, count: int, seed: int, *, multi_label: bool = False) -> None:
    """Writes labelled examples of `task`."""
    if task == "question_answering":
        path.write_text(json.dumps(squad(count, seed)), encoding="utf-8")
    elif task == "classification":
        path.write_text(labelled(count, seed, multi_label=multi_label), encoding="utf-8")
    else:
        write_jsonl(path, queries(count, seed))


def write_training(folder: Path, task: str, *, multi_label: bool = False, **settings: Any) -> Path:
    """Returns the path of a recipe for the training of `task`, with all that it names beside it.

    Args:
        folder: Is filled.
        task: Of `FILES`.
        multi_label: Whether a text of a classification may have several labels.
        settings: Of the recipe's `finetune`, beside `SETTINGS`.
    """
    weights = write_checkpoint(folder / "checkpoint") / "model.safetensors"
    # Far from each other, as trained weights make the answers: random ones need many steps for it.
    spread = {name: tensor * (4 if tensor.ndim == 2 else 1) for name, tensor in load_file(weights).items()}
    save_file(spread, weights, metadata={"format": "pt"})
    write_jsonl(folder / "catalogue.jsonl", items())
    suffix = FILES[task]
    for name, count, seed in (("train", 40, 0), ("dev", 12, 1), ("test", 12, 2)):
        write_examples(folder / f"{name}.{suffix}", task, count, seed, multi_label=multi_label)
    files = {"train": [f"train.{suffix}"], "validation": [f"dev.{suffix}"], "test": [f"test.{suffix}"]}
    return write_recipe(
        folder,
        name=task,
        task={"classification": {"multi_label": True}} if multi_label else TASKS[task],
        gate={"dataset": f"test.{suffix}", "metric": METRICS[task], "keep": 0.01, "confidence": "point"},
        graph=["fuse"],
        serve={"max_batch_size": 8, "max_length": 48, "lengths": "exact", "steps": "single"},
        data=files,
        finetune={**SETTINGS, **settings},
    )


def change(recipe: Path, **settings: Any) -> Path:
    """Returns `recipe` with changed settings; those of `data`, `finetune`, `serve`, `checkpoint` one by one."""
    data = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for name, value in settings.items():
        merged = name in {"data", "finetune", "checkpoint", "serve"} and value
        data[name] = {**data.get(name, {}), **value} if merged else value
    recipe.write_text(yaml.safe_dump(data), encoding="utf-8")
    return recipe


def run(recipe: Path, out: Path | None = None) -> Finetuned:
    return finetune(recipe, out or recipe.parent / "out", None, ALONE)


def of_written(recipe: Path, settings: dict[str, Any]) -> Path:
    """Returns `recipe` with what was trained by it as its checkpoint."""
    return change(recipe, checkpoint={"adapter": "out"} if "lora" in settings else {"source": "./out"})


def material_of(recipe: Path, work: Path | None = None) -> tuple[Compressed, Material]:
    """Returns a recipe's model as passes are given it, and what they may use; `work` is for their trainings."""
    material = Workload.load(recipes.load(recipe), Progress(shown=False)).material(work=work)
    return material.original, material
