"""Recommendation: a query's embedding is matched exactly with those of a catalogue's items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import Tokenizer
from tqdm import tqdm
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator.answering import Answers, encoded
from tritonpress_generator.catalogue import Item, LabelledQuery, load_items, load_queries
from tritonpress_generator.checkpoint import POOLING, Checkpoint
from tritonpress_generator.errors import InputError
from tritonpress_generator.infer import Infer
from tritonpress_generator.metrics import ndcg_at_k, recall_at_k
from tritonpress_generator.packed_layout import Layout
from tritonpress_generator.recipe import Recipe
from tritonpress_generator.recipe_text import Settings
from tritonpress_generator.scores import Scorer, means
from tritonpress_generator.signature import Output, Signature
from tritonpress_generator.steps.recommendation.postprocessor import Catalogue, Postprocessor
from tritonpress_generator.steps.tokenizer.sequences import Batching
from tritonpress_generator.steps.tokenizer.text_encoder import TextEncoder
from tritonpress_generator.token_states import token_states

METRICS = ("ndcg@10", "recall@10")
"""The first is what reports show; higher is better for both."""
MOST = 1.0
"""What an example scores at most, by any of them."""
CALIBRATES_ON = "task.recommendation.catalogue"
"""The recipe's key that names `Data.calibration`, which is taken where the recipe names no other texts."""
AUTO_CLASS = "AutoModel"
ENCODER = "text_encoder"
WINDOWS = False
"""Whether a text may have several sequences."""
INPUTS = ("QUERY",)
_BATCH = 32
_ITEM_BYTES = 1 << 30


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
    def inputs(self) -> dict[str, list[str]]:
        """What is asked, and what the gate asks."""
        return {INPUTS[0]: [query.query for query in self.queries]}

    samples = inputs

    @property
    def calibration(self) -> dict[str, list[str]]:
        """What the items say; the queries are left for the gate."""
        return {INPUTS[0]: [text_of(item) for item in self.items]}


def text_of(item: Item) -> str:
    """Returns what is embedded of `item`."""
    return f"{item.title}. {item.text}" if item.title else item.text


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
    known = {item.item_id for item in items}
    return Data(items, load_queries(recipe.file(recipe.gate.dataset), known, labelled=recipe.gate.labelled))


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
        pooled = states[layout.starts] if self.pooling == "cls" else layout.means(states)
        return torch.nn.functional.normalize(pooled, dim=-1)


def head(encoder: Any, checkpoint: Checkpoint, config: Config) -> tuple[torch.nn.Module, Signature]:
    """Returns the model to export, and what it reads and gives."""
    settings = checkpoint.settings(POOLING)
    pooling = config.pooling or ("cls" if settings.get("pooling_mode_cls_token") else "mean")
    return Head(encoder, pooling).eval(), Signature({"embedding": Output(int(encoder.config.hidden_size))})


def encoder_settings(recipe: Recipe, signature: Signature) -> dict[str, Any]:
    """Returns the settings of the encoder of the public input."""
    serve = recipe.serve
    return {
        "max_length": serve.max_length,
        "max_bytes": recipe.task.config.max_query_bytes,
        "too_long": serve.too_long,
    }


def postprocessor(
    recipe: Recipe, infer: Infer, signature: Signature, tokenizer: Tokenizer, data: Data, checkpoint: Checkpoint
) -> Postprocessor:
    """Returns what ranks the catalogue, its items embedded with `infer`."""
    # An item may be longer than a query, and is always cut.
    settings = encoder_settings(recipe, signature) | {"max_bytes": _ITEM_BYTES, "too_long": "cut"}
    encoder = TextEncoder(Tokenizer.from_str(tokenizer.to_str()), **settings)
    vectors = embed(infer, encoder, [text_of(item) for item in data.items])
    ids, titles = [item.item_id for item in data.items], [item.title for item in data.items]
    return Postprocessor(Catalogue(ids, titles, vectors, recipe.task.config.top_k))


def scorer(data: Data, answers: Answers) -> Scorer:
    """Returns the metrics of the ranked items."""
    ids = [[item_id.decode() for item_id in row] for row in answers["ITEM_ID"]]
    relevant = [query.relevant for query in data.queries]
    return means({"ndcg@10": ndcg_at_k(ids, relevant, 10), "recall@10": recall_at_k(ids, relevant, 10)})


def agreement(data: Data, answers: Answers, others: Answers) -> NDArray[np.float64]:
    """Returns the share of each query's first 10 items that are among the first 10 of `others`, `(queries,)`."""
    pairs = zip(answers["ITEM_ID"][:, :10], others["ITEM_ID"][:, :10], strict=True)
    return np.array([len(set(row) & set(other)) / len(row) for row, other in pairs])


def embed(infer: Infer, encoder: TextEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Returns the embeddings of `texts`, FP32 `(len(texts), width)`, texts of similar length in one batch."""
    sequences = encoded(encoder, {"text": texts})
    order = sorted(range(len(sequences)), key=lambda i: len(sequences.ids[i]))
    batching = Batching(pad_id=0)
    parts: list[NDArray[np.float32]] = []
    with tqdm(total=len(order), desc="catalogue", unit="text", leave=False, disable=None) as bar:
        for start in range(0, len(order), _BATCH):
            feed = batching.pad(sequences.chosen(order[start : start + _BATCH]))
            parts.append(infer(feed)["embedding"])
            bar.update(len(parts[-1]))
    vectors = np.empty((len(order), parts[0].shape[1]), np.float32)
    vectors[order] = np.concatenate(parts)
    return vectors


def ensemble_inputs() -> list[pb.ModelInput]:
    """Returns the public inputs."""
    return [pb.ModelInput(name=INPUTS[0], data_type=pb.TYPE_STRING, dims=[1])]


def ensemble_outputs(config: Config) -> list[pb.ModelOutput]:
    """Returns the public outputs."""
    return [
        pb.ModelOutput(name="ITEM_ID", data_type=pb.TYPE_STRING, dims=[config.top_k]),
        pb.ModelOutput(name="SCORE", data_type=pb.TYPE_FP32, dims=[config.top_k]),
    ]
