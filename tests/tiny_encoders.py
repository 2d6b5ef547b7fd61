"""Small seeded encoders of every family that the project takes, and token ids for them."""

from __future__ import annotations

import numpy as np
import torch
import transformers as hf
from tritonpress_generator.infer import Array
from tritonpress_generator.tasks.recommendation import Head

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
}  # fmt: skip
FUSED = set(FAMILIES) - {"mpnet"}
"""MPNet adds a relative position bias inside its attention, which stays plain."""


def make(family: str, attention: str, pooling: str = "mean") -> torch.nn.Module:
    """Returns the family's encoder with a head; where its attention cannot be exchanged, its own."""
    config_class, values = FAMILIES[family]
    torch.manual_seed(0)
    config = config_class(**values)
    supported = attention if family in FUSED else "eager"
    return Head(hf.AutoModel.from_config(config, attn_implementation=supported).eval(), pooling).eval()


def feed(lengths: list[int], seed: int = 0) -> dict[str, Array]:
    """Returns random sequences of `lengths` tokens as a padded batch."""
    generator = np.random.default_rng(seed)
    ids = np.full((len(lengths), max(lengths)), 1, np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = generator.integers(5, 90, length)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}
