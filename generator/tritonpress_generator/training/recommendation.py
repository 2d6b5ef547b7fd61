"""Trains an encoder's embeddings by contrast: a query is nearer to its item than to the items of the other queries.

Source: van den Oord et al. 2018 (InfoNCE), with the other pairs of the batch as negatives: Henderson et al. 2017,
"Efficient Natural Language Response Suggestion for Smart Reply". The batch is that of all processes together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import Tokenizer

from tritonpress_generator.answering import Texts, encoded
from tritonpress_generator.catalogue import load_items, load_queries
from tritonpress_generator.infer import Infer
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.signature import Signature
from tritonpress_generator.steps.tokenizer.text_encoder import TextEncoder
from tritonpress_generator.tasks import recommendation as task
from tritonpress_generator.training.distributed import World
from tritonpress_generator.training.loop import Feature
from tritonpress_generator.training.settings import FinetuneConfig

METRIC = "mrr"


class Config(FinetuneConfig):
    temperature: float = Field(default=0.05, gt=0)
    """What cosine similarities are divided by."""


@dataclass(frozen=True)
class Pair:
    """A query and an item that answers it."""

    query: str
    item: str
    vector: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    """The item's embedding where it is not the model that is asked which embeds it."""


def load(paths: Sequence[Path], recipe: Recipe) -> list[Pair]:
    """Returns a pair for each relevant item of each query in `paths`; the items are the catalogue's.

    Raises:
        InputError: A file is missing or wrong.
    """
    items = {item.item_id: task.text_of(item) for item in load_items(recipe.file(recipe.task.config.catalogue))}
    queries = [query for path in paths for query in load_queries(path, set(items))]
    return [Pair(query.query, items[item_id]) for query in queries for item_id in query.relevant]


def texts(examples: Sequence[Pair]) -> Texts:
    """Returns what is embedded of `examples`, as the public input."""
    return {task.INPUTS[0]: [text for pair in examples for text in (pair.query, pair.item)]}


def augmented(examples: Sequence[Pair], config: Config) -> Sequence[Pair]:
    """Returns `examples`: nothing is made of them."""
    return examples


def check(
    examples: Sequence[Pair], recipe: Recipe, signature: Signature, tokenizer: Tokenizer, settings: Mapping[str, Any]
) -> None:
    """Refuses examples that the model could not be scored on.

    Raises:
        InputError: A text cannot be embedded.
    """
    encoder = _encoder(recipe, signature, tokenizer)
    for name, column in _columns(examples).items():
        encoded(encoder, {name: column})


def deciding(examples: Sequence[Pair], recipe: Recipe) -> Sequence[Pair]:
    """Returns `examples`: all of them decide which weights are the best."""
    return examples


def as_served(
    examples: Sequence[Pair], infer: Infer, signature: Signature, recipe: Recipe, tokenizer: Tokenizer
) -> Sequence[Pair]:
    """Returns `examples` as a compressed model is asked them: their items are embedded by the original, `infer`."""
    items = list(dict.fromkeys(pair.item for pair in examples))
    vectors = dict(zip(items, task.embed(infer, _encoder(recipe, signature, tokenizer), items), strict=True))
    return [replace(pair, vector=vectors[pair.item]) for pair in examples]


def model_settings(examples: Sequence[Pair], recipe: Recipe) -> dict[str, Any]:
    """Returns what the model's config must say of the head: there is none."""
    return {}


def features(
    examples: Sequence[Pair], recipe: Recipe, tokenizer: Tokenizer, signature: Signature, settings: Mapping[str, Any]
) -> list[Feature]:
    """Returns a feature a pair; an item that is embedded already has its vector in the place of its ids."""
    config: Config = recipe.finetune.config
    encoder = _encoder(recipe, signature, tokenizer, config.max_length)
    queries, items = (encoded(encoder, {name: column}).ids for name, column in _columns(examples).items())
    numbers = {item: number for number, item in enumerate(dict.fromkeys(pair.item for pair in examples))}
    return [
        {
            "input_ids": query,
            "attention_mask": [1] * len(query),
            "item": numbers[pair.item],
            "temperature": config.temperature,
        }
        | (
            {"item_ids": item, "item_mask": [1] * len(item)}
            if pair.vector is None
            else {"item_vector": pair.vector.tolist()}
        )
        for pair, query, item in zip(examples, queries, items, strict=True)
    ]


def outputs(model: Callable[..., Any], batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Returns the embeddings of the queries and of their items behind them, FP32 `(2 batch, width)`."""
    queries = (batch["input_ids"], batch["attention_mask"])
    if "item_vector" in batch:
        return (torch.cat([model(*queries).float(), batch["item_vector"]]),)
    items = (batch["item_ids"], batch["item_mask"])
    width = max(queries[0].shape[1], items[0].shape[1])
    # Both sides in one call, as torch's engine for several processes wants it.
    ids, mask = (
        torch.cat([torch.nn.functional.pad(side, (0, width - side.shape[1])) for side in sides])
        for sides in zip(queries, items, strict=True)
    )
    return (model(ids, mask).float(),)


def outputs_as_served(
    outputs: tuple[torch.Tensor, ...], originals: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """Returns the embeddings of the queries in `outputs`, and those of their items in `originals`, the original's."""
    (own,), (theirs,) = outputs, originals
    return (torch.cat([own.chunk(2)[0], theirs.chunk(2)[1]]),)


def losses(outputs: tuple[torch.Tensor, ...], batch: dict[str, torch.Tensor], world: World) -> torch.Tensor:
    """Returns the cross-entropy of each query's item among the items of all processes' queries, FP32 `(batch,)`."""
    (vectors,) = outputs
    query_vectors, item_vectors = vectors.chunk(2)
    candidates = world.gather_rows(item_vectors)
    numbers = world.gather_rows(batch["item"])
    with torch.autocast(vectors.device.type, enabled=False):  # by which cosines would be apart by 0.004 at least
        similarity = query_vectors @ candidates.T / batch["temperature"][:, None]
    counts = world.gather(len(query_vectors))
    own = torch.arange(len(query_vectors), device=vectors.device) + sum(counts[: world.rank])
    # The same item beside another query is no negative, and beside two queries it is one, as beside what a process
    # without a share of the batch computes in its place.
    first = (numbers[None, :] == numbers[:, None]).to(torch.uint8).argmax(1)
    left_out = (numbers[None, :] == batch["item"][:, None]) | (first != torch.arange(len(numbers), device=first.device))
    left_out[torch.arange(len(own)), own] = False
    return torch.nn.functional.cross_entropy(similarity.masked_fill(left_out, float("-inf")), own, reduction="none")


def distances(
    outputs: tuple[torch.Tensor, ...],
    others: tuple[torch.Tensor, ...],
    batch: dict[str, torch.Tensor],
    temperature: float,
) -> torch.Tensor:
    """Returns how far each query's and item's embeddings are from those of the model that is learnt from, `(batch,)`.

    The mean of 1 - cosine; a temperature changes nothing. Items that the original has embedded stay comparable.
    """
    (vectors,), (wanted,) = outputs, others
    apart = 1 - torch.nn.functional.cosine_similarity(vectors, wanted)
    return torch.stack(apart.chunk(2)).mean(0)


def answers(
    infer: Infer, signature: Signature, examples: Sequence[Pair], recipe: Recipe, tokenizer: Tokenizer
) -> list[Any]:
    """Returns the embeddings of each query and of its item, FP32 `(2, width)`."""
    if not examples:
        return []
    encoder, columns = _encoder(recipe, signature, tokenizer), _columns(examples)
    known = [pair.vector for pair in examples if pair.vector is not None]
    items = np.stack(known) if known else task.embed(infer, encoder, columns["item"])
    return list(np.stack([task.embed(infer, encoder, columns["query"]), items], 1))


def judge(
    examples: Sequence[Pair], answers: Sequence[Any], recipe: Recipe, settings: Mapping[str, Any]
) -> Callable[[NDArray[np.int64]], dict[str, float]]:
    """Returns what gives the mean reciprocal rank (`mrr`) of those of `examples` that it is asked for by their indices.

    It is the rank of each query's item among the items of all `examples`, each of them counted once.
    """
    vectors = np.stack(answers)
    _, first, number = np.unique([pair.item for pair in examples], return_index=True, return_inverse=True)
    # (queries, items).
    similarity = vectors[:, 0] @ vectors[first, 1].T
    own = similarity[np.arange(len(number)), number]
    reciprocal = 1 / (1 + (similarity > own[:, None]).sum(1))
    return lambda rows: {METRIC: float(reciprocal[rows].mean())}


def chosen(
    examples: Sequence[Pair], answers: Sequence[Any], recipe: Recipe, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns nothing: there is nothing to choose."""
    return {}


def _columns(examples: Sequence[Pair]) -> dict[str, list[str]]:
    return {"query": [pair.query for pair in examples], "item": [pair.item for pair in examples]}


def _encoder(recipe: Recipe, signature: Signature, tokenizer: Tokenizer, max_length: int | None = None) -> TextEncoder:
    """Returns the encoder of queries and items; a long text is cut."""
    settings = task.encoder_settings(recipe, signature) | {"too_long": "cut", "max_bytes": 1 << 30}
    settings |= {"max_length": max_length} if max_length else {}
    return TextEncoder(Tokenizer.from_str(tokenizer.to_str()), **settings)
