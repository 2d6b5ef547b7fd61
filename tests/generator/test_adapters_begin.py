"""New adapters take up what another model has learnt, as near as their rank comes to it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification
from tritonpress_generator.errors import InputError
from tritonpress_generator.trainable import begin_with, with_adapters
from tritonpress_generator.training.settings import LoraConfig

NAME = "bert.encoder.layer.0.intermediate.dense"


def tiny() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, **sizes)).eval()


def beside(learnt: int, seed: int) -> tuple[Any, Any]:
    """Returns a model, and one whose linear layer differs by a matrix of rank `learnt`, and its head by numbers."""
    plain = tiny()
    other = copy.deepcopy(plain)
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer = other.get_submodule(NAME)
        left, right = (torch.randn(size, learnt, generator=numbers) for size in layer.weight.shape)
        layer.weight += 0.1 * left @ right.T
        other.classifier.bias += torch.randn(2, generator=numbers)
    return plain, other


@given(learnt=st.integers(0, 6), rank=st.integers(1, 8), alpha=st.sampled_from([1, 8, 96]), seed=st.integers(0, 99))
def test_begin_as_near_as_their_rank_comes(learnt: int, rank: int, alpha: int, seed: int) -> None:
    plain, other = beside(learnt, seed)
    wanted = other.state_dict()
    with torch.no_grad():
        left_over = torch.linalg.svdvals(wanted[f"{NAME}.weight"] - plain.get_submodule(NAME).weight)[rank:]
    adapted = with_adapters(plain, LoraConfig(rank=rank, alpha=alpha), wanted)
    begin_with(plain, wanted, where="here")
    # A rank of which nothing is wanted can learn yet.
    assert all((tensor != 0).any(1).all() for name, tensor in plain.named_parameters() if "lora_A" in name)
    result = adapted.merge_and_unload().state_dict()
    assert result.keys() == wanted.keys()
    for name, tensor in wanted.items():
        error = float((result[name] - tensor).norm())
        assert error == pytest.approx(float(left_over.norm()) if name == f"{NAME}.weight" else 0, abs=1e-5, rel=1e-3)


def test_what_no_adapter_changes_is_refused() -> None:
    plain, other = beside(1, 0)
    with torch.no_grad():
        other.get_submodule(NAME).bias[3] += 1
    with_adapters(plain, LoraConfig(rank=2), other.state_dict())
    with pytest.raises(InputError, match=rf"here: {NAME}\.bias is not the checkpoint's, and no adapter changes it"):
        begin_with(plain, other.state_dict(), where="here")
