"""Of more texts than a pass takes, it takes some of all lengths: they come to it by their lengths."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoders import feed, make, signature
from tritonpress_generator import export
from tritonpress_generator.graph import fixed_point, fuse, qdq, quantize
from tritonpress_generator.sampling import spread

MODEL = make("bert", export.ATTENTION)
FP32 = export.export(MODEL, signature(MODEL))
FUSED = fuse.apply(FP32, fuse.Config(), [])
BY_LENGTH = [feed([1 + i], seed=i) for i in range(24)]


@given(st.integers(1, 400), st.integers(1, 300))
def test_samples_are_spread_over_all(count: int, most: int) -> None:
    chosen = [*spread(range(count), most)]
    assert len(chosen) == min(count, most)
    assert chosen[0] == 0
    steps = {after - before for before, after in zip(chosen, [*chosen[1:], count], strict=True)}
    assert steps <= {count // len(chosen), -(-count // len(chosen))}


@pytest.mark.parametrize(
    ("module", "settings", "graph"), [(quantize, {}, FUSED), (fixed_point, {"bits": 16}, FUSED), (qdq, {}, FP32)]
)
def test_a_pass_takes_them_from_all_lengths(module: ModuleType, settings: dict[str, int], graph: object) -> None:
    config = module.Config(samples=8, **settings)
    of_all, of_chosen, of_short = (
        module.apply(graph, config, samples).SerializeToString()
        for samples in (BY_LENGTH, BY_LENGTH[::3], BY_LENGTH[:8])
    )
    assert of_all == of_chosen != of_short
