"""Small seeded encoders of every family that the project takes, with a head of every kind, and token ids for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from tritonpress_generator.engines import Asked
from tritonpress_generator.exchange import exchange_attention
from tritonpress_generator.infer import Array
from tritonpress_generator.packed_layout import Layout
from tritonpress_generator.signature import SEGMENTS, Output, Signature
from tritonpress_generator.tasks.recommendation import Head
from tritonpress_generator.token_states import reads_segments, token_states

SMALL = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "max_position_embeddings": 66, "pad_token_id": 1}  # fmt: skip
FAMILIES = {
    "bert": (hf.BertConfig, SMALL),
    "roberta": (hf.RobertaConfig, SMALL),
    "xlm-roberta": (hf.XLMRobertaConfig, SMALL),
    "electra": (hf.ElectraConfig, SMALL | {"embedding_size": 16}),
    "albert": (hf.AlbertConfig, SMALL | {"embedding_size": 16}),
    "mpnet": (hf.MPNetConfig, SMALL),
    "distilbert": (hf.DistilBertConfig, {"vocab_size": 90, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64,
                                         "max_position_embeddings": 66, "pad_token_id": 1}),
    "nomic_bert": (hf.NomicBertConfig, SMALL),
    "modernbert": (hf.ModernBertConfig, SMALL | {"local_attention": 8, "global_attn_every_n_layers": 2,
                                                 "cls_token_id": 2, "sep_token_id": 3}),
    "eurobert": (hf.EuroBertConfig, SMALL | {"num_key_value_heads": 1}),
    "deberta-v2": (hf.DebertaV2Config, SMALL | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v3": (hf.DebertaV2Config, SMALL | {"relative_attention": True, "pos_att_type": "p2c|c2p",
                                                "share_att_key": True, "position_buckets": 8,
                                                "norm_rel_ebd": "layer_norm", "position_biased_input": False}),
}  # fmt: skip
"""The last one is DeBERTa as it is published, v2 too: the keys and queries of positions are made by those of tokens."""
PACKED = {family for family in FAMILIES if not family.startswith("deberta")}
"""DeBERTa's attention cannot be exchanged, and stays plain."""
_UNLIKE = {"bert", "modernbert", "deberta-v3"}
"""Families whose graphs differ most."""


def mostly_slow(families: Iterable[str]) -> list[Any]:
    """Returns the families as parameters of a test that takes seconds for each; all but the most unlike are slow."""
    return [pytest.param(name, marks=[] if name in _UNLIKE else [pytest.mark.slow]) for name in sorted(families)]


class Classifier(torch.nn.Module):
    """The first token's vector to `labels` scores a sequence."""

    def __init__(self, encoder: torch.nn.Module, labels: int = 3) -> None:
        super().__init__()
        self.encoder = encoder
        self.dense = torch.nn.Linear(32, 32)
        self.scores = torch.nn.Linear(32, labels)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self._scores(self.states(input_ids, attention_mask)[:, 0])

    def states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return token_states(self.encoder, input_ids, attention_mask)

    def packed_outputs(self, states: torch.Tensor, layout: Layout) -> torch.Tensor:
        return self._scores(states[layout.starts])

    def _scores(self, first: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scores(torch.tanh(self.dense(first)))
        return scores


class Reader(torch.nn.Module):
    """Reads pairs: where in the text an answer starts and ends, a value a token; and, if asked, scores of the pair."""

    def __init__(self, encoder: torch.nn.Module, scores: dict[str, int] | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.span = torch.nn.Linear(32, 2)
        self.scores = torch.nn.ModuleDict({name: torch.nn.Linear(32, width) for name, width in (scores or {}).items()})

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states = self.states(*inputs)
        return self._outputs(states, states[:, 0])

    def states(self, *inputs: torch.Tensor) -> torch.Tensor:
        return token_states(self.encoder, *inputs)

    def packed_outputs(self, states: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, ...]:
        return self._outputs(states, states[layout.starts])

    def _outputs(self, states: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, ...]:
        start, end = self.span(states).unbind(-1)
        return start, end, *(linear(first) for linear in self.scores.values())


HEADS = ("mean", "classifier", "span")
FAMILIES_WITH_HEADS = [(family, head) for family in FAMILIES for head in HEADS if family == "bert" or head == "span"]
"""Every head on one family, and on every family the head that shows each token and, where it has them, segments."""


def make(family: str, attention: str, head: str = "mean") -> torch.nn.Module:
    """Returns the family's encoder with a head.

    Args:
        family: Of `FAMILIES`.
        attention: "own", or a name of `transformers`' attention registry.
        head: One of `HEADS`, or "cls", or "all": a span head that gives one score and three scores a sequence too.
    """
    config_class, values = FAMILIES[family]
    torch.manual_seed(0)
    encoder = hf.AutoModel.from_config(config_class(**values)).eval()
    if attention != "own":
        exchange_attention(encoder, attention)
    if head == "classifier":
        return Classifier(encoder).eval()
    if head in {"span", "all"}:
        return Reader(encoder, {"relevance": 1, "scores": 3} if head == "all" else None).eval()
    return Head(encoder, head).eval()


def signature(model: torch.nn.Module) -> Signature:
    """Returns what a model of `make` reads and gives."""
    if isinstance(model, Classifier):
        return Signature({"scores": Output(3)})
    if isinstance(model, Reader):
        spans = {"start": Output.per_token(), "end": Output.per_token()}
        scores = {name: Output(linear.out_features) for name, linear in model.scores.items()}
        return Signature(spans | scores, segments=reads_segments(model.encoder))
    return Signature({"embedding": Output(32)})


def asked(gives: Signature, form: str = "exact", *, borders: tuple[int, ...] = ()) -> Asked:
    """Returns what an engine of one of these models is asked."""
    return Asked(
        "tiny", gives, form, native=True, max_batch_size=8, max_length=48, borders=borders, lengths=(4, 12, 12, 30)
    )


def feed(lengths: list[int], seed: int = 0) -> dict[str, Array]:
    """Returns random sequences of `lengths` tokens as a padded batch."""
    generator = np.random.default_rng(seed)
    ids = np.full((len(lengths), max(lengths)), 1, np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = generator.integers(5, 90, length)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def pairs(lengths: list[int], seed: int = 0) -> dict[str, Array]:
    """Returns `feed` with segment ids: the first part of each sequence is of the first segment, at random how long."""
    batch = feed(lengths, seed)
    border = np.random.default_rng(seed).integers(0, np.array(lengths) + 1)
    segments = (np.arange(max(lengths)) >= border[:, None]).astype(np.int64) * batch["attention_mask"]
    return batch | {SEGMENTS: segments}
