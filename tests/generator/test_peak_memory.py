"""What an engine is said to take at most is what its process takes, and nothing of the process that asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from tiny_encoders import asked
from tritonpress_generator import export, peak_memory
from tritonpress_generator.engines import Asked
from tritonpress_generator.engines import onnxruntime_edge as engine
from tritonpress_generator.errors import GateError, InputError
from tritonpress_generator.exchange import exchange_attention
from tritonpress_generator.graph import fixed_point, fuse
from tritonpress_generator.signature import Output, Signature
from tritonpress_generator.tasks.recommendation import Head

GIVES = Signature({"embedding": Output(256)})
ASKED = replace(asked(GIVES), max_batch_size=16, max_length=128)
PARAMETERS = {"intra_op_thread_count": "1", "inter_op_thread_count": "1", "enable_mem_pattern": "false"}
WEIGHTS_MIB = 1000 * 256 * 4 / 2**20 + 4 * 12 * 256**2 * 4 / 2**20
"""Of the vocabulary and of four layers, in FP32."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of 13 MiB, as an engine in FP32 and in 16 bits."""
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=1000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024,
        max_position_embeddings=128,
    )  # fmt: skip
    encoder = hf.AutoModel.from_config(config).eval()
    exchange_attention(encoder, export.ATTENTION)
    fp32 = fuse.apply(export.export(Head(encoder, "mean").eval(), GIVES), fuse.Config(), [])
    ids = np.random.default_rng(0).integers(5, 1000, (1, 100))
    samples = [{"input_ids": ids, "attention_mask": np.ones_like(ids)}]
    graphs = {"fp32": fp32, "fixed": fixed_point.apply(fp32, fixed_point.Config(bits=16), samples)}
    made = {name: tmp_path_factory.mktemp(name) / "1" for name in graphs}
    for name, graph in graphs.items():
        engine.build({name: graph}, made[name], engine.Config(), ASKED)
    return made


def measure(folder: Path, ask: Asked = ASKED) -> peak_memory.PeakMemory:
    return peak_memory.measure("onnxruntime_edge", folder, PARAMETERS, ask)


def test_weights_and_activations_are_in_the_figures(folders: dict[str, Path]) -> None:
    peak = measure(folders["fp32"])
    loaded = peak_memory.mib(peak.loaded - peak.interpreter)
    assert WEIGHTS_MIB < loaded < 4 * WEIGHTS_MIB
    # Two of the feed-forward block's inner width at least, and not all layers'.
    activations = peak_memory.mib(peak.full_batch - peak.loaded)
    assert 2 * 16 * 128 * 1024 * 4 / 2**20 * 0.5 < activations < 100
    smaller = measure(folders["fp32"], replace(ASKED, max_batch_size=1, max_length=16))
    assert smaller.most < peak.most - 2**23


@pytest.mark.slow
def test_memory_of_the_asking_process_is_not_in_them(folders: dict[str, Path]) -> None:
    before = measure(folders["fixed"])
    ballast = np.ones(2**26)  # 512 MiB, resident
    after = measure(folders["fixed"])
    assert ballast.nbytes == 2**29
    assert abs(after.most - before.most) < 2**25


@pytest.mark.slow
def test_16_bits_take_less_than_32(folders: dict[str, Path]) -> None:
    fp32, fixed = measure(folders["fp32"]), measure(folders["fixed"])
    sizes = [(folders[name] / "model.ort").stat().st_size for name in ("fp32", "fixed")]
    assert sizes[1] < 0.55 * sizes[0]
    assert peak_memory.mib(fp32.one_sequence - fixed.one_sequence) > 0.5 * WEIGHTS_MIB


@pytest.mark.slow
def test_ceiling_is_held_to_the_highest_figure(folders: dict[str, Path]) -> None:
    most = peak_memory.mib(measure(folders["fixed"]).most)
    figures = engine.measured(folders["fixed"], engine.Config(memory_ceiling_mib=most + 16), ASKED)
    assert peak_memory.mib(figures["peak_memory_bytes"]["mixed_batches"]) == pytest.approx(most, abs=16)
    with pytest.raises(GateError, match=r"must stay within memory_ceiling_mib .*, got .* mixed batches .* MiB\)"):
        engine.measured(folders["fixed"], engine.Config(memory_ceiling_mib=most - 16), ASKED)


def test_engine_that_does_not_run_is_said_with_its_last_word(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"engine\.onnxruntime_edge: .* ended with status 1 \(.*\); lower"):
        measure(tmp_path)
    with pytest.raises(InputError, match=r"an execution of 16 sequences of 129 tokens .* ended with status 1"):
        measure(folders["fp32"], replace(ASKED, max_length=129))
