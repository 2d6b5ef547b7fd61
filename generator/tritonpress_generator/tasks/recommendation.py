"""Recommendation: a query's embedding is matched exactly with those of a catalogue's items."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from tqdm import tqdm
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator.catalogue import Item, LabelledQuery, load_items, load_queries
from tritonpress_generator.checkpoint import Checkpoint
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.metrics import ndcg_at_k, recall_at_k
from tritonpress_generator.packed_layout import Layout
from tritonpress_generator.recipe import Recipe, Settings
from tritonpress_generator.signature import Output, Signature
from tritonpress_generator.steps.recommendation.postprocessor import Catalogue
from tritonpress_generator.steps.tokenizer.text_encoder import TextEncoder
from tritonpress_generator.token_states import token_states

METRICS = ("ndcg@10", "recall@10")
"""The first is what reports show; higher is better for both."""
INPUT = "QUERY"
_BATCH = 32


class Config(Settings):
    catalogue: str
    """JSONL or CSV of the items (`id`, `title`, `text`), relative to the recipe."""
    top_k: int = Field(default=10, ge=1, le=1000)
    """How many items an answer has."""
    pooling: Literal["mean", "cls"] | None = None
    """How token vectors become one; default: the checkpoint's `1_Pooling` (sentence-transformers), else mean."""
    max_query_bytes: int = Field(default=8192, ge=1, le=1 << 20)
    """A longer query is refused; the default is far beyond what `max_length` tokens can hold."""


@dataclass(frozen=True)
class Data:
    """The recipe's items and labelled queries, read and checked."""

    items: list[Item]
    queries: list[LabelledQuery]

    @property
    def texts(self) -> list[str]:
        """What the items say; the queries are left for the gate."""
        return [f"{item.title}. {item.text}" if item.title else item.text for item in self.items]

    @property
    def samples(self) -> list[str]:
        """What is asked."""
        return [query.query for query in self.queries]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one artefact, and the answers that gave them."""

    metrics: dict[str, float]
    ids: list[list[str]]
    scores: list[list[float]]


def load_data(recipe: Recipe) -> Data:
    """Returns the data that `recipe` names.

    Raises:
        InputError: A file is missing or wrong, or the catalogue has fewer items than an answer.
    """
    config: Config = recipe.task.config
    items = load_items(recipe.file(config.catalogue))
    if len(items) < config.top_k:
        raise InputError(
            f"{recipe.path}: task.recommendation.top_k must be at most the catalogue's {len(items)} items, "
            f"got {config.top_k}; lower it"
        )
    return Data(items, load_queries(recipe.file(recipe.gate.dataset), {item.item_id for item in items}))


class Head(torch.nn.Module):
    """The encoder with pooling: `(batch, seq)` INT64 ids and mask to `(batch, width)` FP32 of length 1."""

    def __init__(self, encoder: torch.nn.Module, pooling: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.states(input_ids, attention_mask)
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            weights = attention_mask.to(states.dtype)
            pooled = torch.matmul(weights.unsqueeze(1), states).squeeze(1) / weights.sum(1, keepdim=True)
        return torch.nn.functional.normalize(pooled, dim=-1)

    def states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Returns a vector a token, FP32 `(batch, seq, width)`."""
        return token_states(self.encoder, input_ids, attention_mask)

    def packed_outputs(self, states: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Returns `(sequences, width)` for the packed `(tokens, width)`."""
        if self.pooling == "cls":
            pooled = states[layout.starts]
        else:
            row = torch.cumsum(torch.ones_like(layout.lengths), 0) - 1
            members = (row[:, None] == layout.sequence[None, :]).to(states.dtype)
            pooled = torch.matmul(members, states) / layout.lengths[:, None].to(states.dtype)
        return torch.nn.functional.normalize(pooled, dim=-1)


def head(encoder: Any, checkpoint: Checkpoint, config: Config) -> tuple[torch.nn.Module, Signature]:
    """Returns the model to export, and what it reads and gives."""
    settings = checkpoint.settings("1_Pooling/config.json")
    pooling = config.pooling or ("cls" if settings.get("pooling_mode_cls_token") else "mean")
    return Head(encoder, pooling).eval(), Signature({"embedding": Output(int(encoder.config.hidden_size))})


def index(infer: Infer, encoder: TextEncoder, data: Data, config: Config) -> Catalogue:
    """Returns the catalogue, its items embedded with `infer`."""
    vectors = embed(infer, encoder, data.texts, label="catalogue")
    ids = [item.item_id for item in data.items]
    return Catalogue(ids, [item.title for item in data.items], vectors, config.top_k)


def evaluate(infer: Infer, encoder: TextEncoder, data: Data, catalogue: Catalogue) -> Evaluation:
    """Returns the metrics of `infer` on the labelled queries, against the catalogue as it is embedded.

    Every query is asked alone, as most are when they are served.
    """
    queries = [query.query for query in data.queries]
    vectors = embed(infer, encoder, queries, label="queries", batch=1)
    ids: list[list[str]] = []
    scores: list[list[float]] = []
    for vector, query in zip(vectors, queries, strict=True):
        top, similarity = catalogue.rank(vector, query)
        ids.append([item_id.decode() for item_id in catalogue.ids[top]])
        scores.append([float(score) for score in similarity])
    relevant = [query.relevant for query in data.queries]
    metrics = {"ndcg@10": ndcg_at_k(ids, relevant, 10), "recall@10": recall_at_k(ids, relevant, 10)}
    return Evaluation(metrics, ids, scores)


def embed(
    infer: Infer, encoder: TextEncoder, texts: Sequence[str], *, label: str, batch: int = _BATCH
) -> NDArray[np.float32]:
    """Returns the embeddings of `texts`, FP32 `(len(texts), width)`, texts of similar length in one batch."""
    rows = encoder.encode([text.encode() for text in texts])
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    parts: list[NDArray[np.float32]] = []
    with tqdm(total=len(rows), desc=label, unit="text", leave=False, disable=None) as bar:
        for start in range(0, len(rows), batch):
            ids, mask = encoder.pad([rows[i] for i in order[start : start + batch]])
            parts.append(infer({"input_ids": ids, "attention_mask": mask})["embedding"])
            bar.update(len(ids))
    vectors = np.empty((len(rows), parts[0].shape[1]), np.float32)
    vectors[order] = np.concatenate(parts)
    return vectors


def feeds(encoder: TextEncoder, texts: Sequence[str]) -> Iterator[dict[str, Array]]:
    """Yields each of `texts` as the model's inputs, one sequence at its exact length."""
    for row in encoder.encode([text.encode() for text in texts]):
        ids = np.array([row], np.int64)
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def ensemble_inputs() -> list[pb.ModelInput]:
    """Returns the public inputs."""
    return [pb.ModelInput(name=INPUT, data_type=pb.TYPE_STRING, dims=[1])]


def ensemble_outputs(config: Config) -> list[pb.ModelOutput]:
    """Returns the public outputs."""
    return [
        pb.ModelOutput(name="ITEM_ID", data_type=pb.TYPE_STRING, dims=[config.top_k]),
        pb.ModelOutput(name="SCORE", data_type=pb.TYPE_FP32, dims=[config.top_k]),
    ]


def write_postprocessing(version_dir: Path, catalogue: Catalogue, data: Data) -> None:
    """Writes what the post-processing step reads, beside its code."""
    items = {
        "ids": [item.item_id for item in data.items],
        "titles": [item.title for item in data.items],
        "top_k": catalogue.top_k,
    }
    (version_dir / "items.json").write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    np.save(version_dir / "embeddings.npy", catalogue.embeddings, allow_pickle=False)


def golden_requests(data: Data, evaluation: Evaluation, *, count: int) -> list[dict[str, Any]]:
    """Returns `count` requests, spread over the labelled queries, with the answers that they must get."""
    chosen = np.linspace(0, len(data.queries) - 1, min(count, len(data.queries))).round().astype(int)
    return [
        {
            "inputs": {INPUT: data.queries[i].query},
            "outputs": {"ITEM_ID": evaluation.ids[i], "SCORE": evaluation.scores[i]},
        }
        for i in chosen
    ]
