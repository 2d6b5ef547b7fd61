"""Adapters in FP8: how far their products are from what was trained, and that peft reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import BertConfig, BertModel
from tritonpress_generator.adapter_precision import in_fp8
from tritonpress_generator.checkpoint import ADAPTER, Checkpoint
from tritonpress_generator.pretrained import merged, quiet_peft
from tritonpress_generator.written import write_adapter

A, B = "layer.lora_A.weight", "layer.lora_B.weight"
BOUND = 2 * 2**-4 + 2**-8
"""Both factors are rounded by half a step of three bits of mantissa."""


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.floats(1e-6, 1e4), st.floats(1e-6, 1e4))
def test_each_rank_is_off_by_what_three_bits_round(seed: int, rank: int, of_rows: float, of_columns: float) -> None:
    generator = np.random.default_rng(seed)
    # Magnitudes within a row that E4M3 has in its normal numbers.
    signs = lambda *shape: generator.choice([-1.0, 1.0], shape) * generator.uniform(0.2, 1.0, shape)  # noqa: E731
    rows, columns = signs(rank, 12) * of_rows, signs(9, rank) * of_columns
    state = {A: torch.tensor(rows).float(), B: torch.tensor(columns).float(), "head.weight": torch.ones(2, 3)}
    written, alpha = in_fp8(state, 4.0)
    assert {name: tensor.dtype for name, tensor in written.items()} == {
        A: torch.float8_e4m3fn,
        B: torch.float8_e4m3fn,
        "head.weight": torch.float16,
    }
    for number in range(rank):
        wanted = 4.0 * np.outer(columns[:, number], rows[number])
        got = alpha * np.outer(written[B].double()[:, number], written[A].double()[number])
        assert np.abs(got - wanted).max() <= BOUND * np.abs(wanted).max()


def test_what_has_learnt_nothing_stays_nothing() -> None:
    written, alpha = in_fp8({A: torch.randn(4, 8), B: torch.zeros(8, 4)}, 8.0)
    assert not written[B].float().any()
    assert np.isfinite(alpha)
    assert torch.isfinite(written[A].float()).all()
    untouched, alpha = in_fp8({A: torch.zeros(4, 8), B: torch.zeros(8, 4)}, 8.0)
    assert not any(tensor.float().any() for tensor in untouched.values())
    assert alpha == 8.0


@pytest.mark.parametrize(("precision", "most"), [("fp16", 1e-3), ("fp8", 0.06)])
def test_adapter_is_merged_as_it_was_trained(precision: str, most: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertModel(BertConfig(vocab_size=50, **sizes)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with quiet_peft():
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["query", "dense"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    source = Checkpoint("package:none", tmp_path, (), "")
    write_adapter(tmp_path / "adapter", model, adapted, source, precision=precision)
    wanted = {name: tensor.clone() for name, tensor in adapted.merge_and_unload().state_dict().items()}
    plain = BertModel(BertConfig(vocab_size=50, **sizes)).eval()
    plain.load_state_dict(before)
    got = merged(plain, tmp_path / "adapter").state_dict()
    for name, tensor in wanted.items():
        change = (tensor - before[name]).norm()
        assert (got[name] - tensor).norm() <= most * change + 1e-6
    stored = load_file(tmp_path / "adapter" / ADAPTER)
    bytes_each = {tensor.element_size() for tensor in stored.values()}
    assert bytes_each == ({1} if precision == "fp8" else {2})
