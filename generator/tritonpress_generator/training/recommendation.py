"""Trains an encoder's embeddings by contrast: a query is nearer to its item than to the items of the other queries.

Source: van den Oord et al. 2018 (InfoNCE), with the other pairs of the batch as negatives: Henderson et al. 2017,
"Efficient Natural Language Response Suggestion for Smart Reply". The batch is that of all processes together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from tokenizers import Tokenizer

from tritonpress_generator.catalogue import load_items, load_queries
from tritonpress_generator.infer import Infer
from tritonpress_generator.recipe import FinetuneConfig, Recipe
from tritonpress_generator.signature import Signature
from tritonpress_generator.steps.tokenizer.text_encoder import TextEncoder
from tritonpress_generator.tasks import recommendation as task
from tritonpress_generator.training.distributed import World
from tritonpress_generator.training.loop import Feature

METRIC = "mrr"


class Config(FinetuneConfig):
    temperature: float = Field(default=0.05, gt=0)
    """What cosine similarities are divided by."""


@dataclass(frozen=True)
class Pair:
    """A query and an item that answers it."""

    query: str
    item: str


def load(paths: Sequence[Path], recipe: Recipe) -> list[Pair]:
    """Returns a pair for each relevant item of each query in `paths`; the items are the catalogue's.

    Raises:
        InputError: A file is missing or wrong.
    """
    items = {item.item_id: task.text_of(item) for item in load_items(recipe.file(recipe.task.config.catalogue))}
    queries = [query for path in paths for query in load_queries(path, set(items))]
    return [Pair(query.query, items[item_id]) for query in queries for item_id in query.relevant]


def augmented(examples: Sequence[Pair], config: Config) -> Sequence[Pair]:
    """Returns `examples`: nothing is made of them."""
    return examples


def model_settings(examples: Sequence[Pair], recipe: Recipe) -> dict[str, Any]:
    """Returns what the model's config must say of the head: there is none."""
    return {}


def features(examples: Sequence[Pair], recipe: Recipe, tokenizer: Tokenizer, signature: Signature) -> list[Feature]:
    """Returns a feature a pair."""
    config: Config = recipe.finetune.config  # type: ignore[union-attr]
    settings = task.encoder_settings(recipe, signature) | {"too_long": "cut", "max_bytes": 1 << 30}
    encoder = TextEncoder(tokenizer, **settings | ({"max_length": config.max_length} if config.max_length else {}))
    queries, items = (
        encoder.encode([text.encode() for text in texts]).ids
        for texts in ([pair.query for pair in examples], [pair.item for pair in examples])
    )
    numbers = {item: number for number, item in enumerate(dict.fromkeys(pair.item for pair in examples))}
    return [
        {
            "input_ids": query,
            "attention_mask": [1] * len(query),
            "item_ids": item,
            "item_mask": [1] * len(item),
            "item": numbers[pair.item],
            "temperature": config.temperature,
        }
        for pair, query, item in zip(examples, queries, items, strict=True)
    ]


def losses(model: Callable[..., Any], batch: dict[str, torch.Tensor], world: World) -> torch.Tensor:
    """Returns the cross-entropy of each query's item among the items of all processes' queries, FP32 `(batch,)`."""
    queries, items = _side(batch, "input_ids", "attention_mask"), _side(batch, "item_ids", "item_mask")
    width = max(queries[0].shape[1], items[0].shape[1])
    # Both sides in one call, as torch's engine for several processes wants it.
    ids, mask = (
        torch.cat([torch.nn.functional.pad(side, (0, width - side.shape[1])) for side in sides])
        for sides in zip(queries, items, strict=True)
    )
    vectors = model(ids, mask).float()
    query_vectors, item_vectors = vectors.chunk(2)
    candidates = world.gather_rows(item_vectors)
    numbers = world.gather_rows(batch["item"])
    similarity = query_vectors @ candidates.T / batch["temperature"][:, None]
    counts = world.gather(len(query_vectors))
    own = torch.arange(len(query_vectors), device=vectors.device) + sum(counts[: world.rank])
    # The same item beside another query is no negative.
    same = numbers[None, :] == batch["item"][:, None]
    same[torch.arange(len(own)), own] = False
    return torch.nn.functional.cross_entropy(similarity.masked_fill(same, float("-inf")), own, reduction="none")


def _side(batch: dict[str, torch.Tensor], ids: str, mask: str) -> tuple[torch.Tensor, torch.Tensor]:
    return batch[ids], batch[mask]


def answers(
    infer: Infer, signature: Signature, examples: Sequence[Pair], recipe: Recipe, tokenizer: Tokenizer
) -> list[Any]:
    """Returns the embeddings of each query and of its item, FP32 `(2, width)`."""
    if not examples:
        return []
    settings = task.encoder_settings(recipe, signature) | {"too_long": "cut", "max_bytes": 1 << 30}
    encoder = TextEncoder(Tokenizer.from_str(tokenizer.to_str()), **settings)
    queries = task.embed(infer, encoder, [pair.query for pair in examples])
    items = task.embed(infer, encoder, [pair.item for pair in examples])
    return list(np.stack([queries, items], 1))


def score(
    examples: Sequence[Pair], answers: Sequence[Any], recipe: Recipe, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Returns the mean reciprocal rank of each query's item among the items of all `examples` (`mrr`)."""
    vectors = np.stack(answers)
    # (queries, items): the item beside a query has the query's own index.
    similarity = vectors[:, 0] @ vectors[:, 1].T
    own = similarity.diagonal()
    items = np.array([pair.item for pair in examples])
    others = items[None, :] != items[:, None]
    rank = 1 + ((similarity > own[:, None]) & others).sum(1)
    return {"mrr": float((1 / rank).mean())}


def chosen(
    infer: Infer,
    signature: Signature,
    examples: Sequence[Pair],
    recipe: Recipe,
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns nothing: there is nothing to choose."""
    return {}
