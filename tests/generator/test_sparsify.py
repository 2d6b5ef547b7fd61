"""The smallest magnitudes become 0, by share or two of four; who gains nothing by it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import change, write_training
from tritonpress_generator import cli
from tritonpress_generator import recipe as recipes
from tritonpress_generator.compression import Compressed, Material
from tritonpress_generator.errors import InputError
from tritonpress_generator.passes import sparsify
from tritonpress_generator.progress import Progress
from tritonpress_generator.workload import Workload


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Compressed, Material]:
    recipe = recipes.load(write_training(tmp_path_factory.mktemp("sparsify"), "recommendation"))
    material = Workload.load(recipe, Progress(shown=False)).material()
    return material.original, material


def linears(compressed: Compressed) -> list[torch.Tensor]:
    return [m.weight.detach() for m in compressed.model.modules() if isinstance(m, torch.nn.Linear)]


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_smallest_magnitudes_go(loaded: tuple[Compressed, Material], scope: Any, share: float) -> None:
    before = linears(loaded[0])
    result = sparsify.apply(loaded[0], sparsify.Config(share=share, scope=scope), loaded[1])
    after = linears(result)
    assert result.report["sparsify"]["zeros"] == pytest.approx(share, abs=1e-3)
    together = [(torch.cat([t.flatten() for t in before]), torch.cat([t.flatten() for t in after]))]
    for whole, left in together if scope == "global" else zip(before, after, strict=True):
        assert float((left == 0).float().mean()) == pytest.approx(share, abs=2e-3)
        gone = left == 0
        assert whole[gone].abs().max() <= whole[~gone].abs().min()
        assert torch.equal(whole[~gone], left[~gone])
        # A threshold on the weight itself would have taken the large negative ones.
        assert (left < 0).any()
    assert torch.equal(linears(loaded[0])[0], before[0])


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31 - 1))
def test_two_of_every_four_stay_the_largest(rows: int, fours: int, seed: int) -> None:
    weight = torch.randn(rows, 4 * fours, generator=torch.Generator().manual_seed(seed))
    kept = sparsify.two_of_four(weight)
    grouped, masks = weight.abs().reshape(-1, 4), kept.reshape(-1, 4)
    assert (masks.sum(1) == 2).all()
    for magnitudes, mask in zip(grouped, masks, strict=True):
        assert magnitudes[mask].min() >= magnitudes[~mask].max()


def test_equal_weights_are_still_two_of_four() -> None:
    assert (sparsify.two_of_four(torch.zeros(3, 8)).reshape(-1, 4).sum(1) == 2).all()


def test_inputs_that_four_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="2:4 needs layers whose inputs are a multiple of 4, one has 6"):
        sparsify.two_of_four(torch.zeros(2, 6))


def test_who_gains_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    passes = [{"sparsify": {"pattern": "2:4"}} for _ in range(2)]
    recipe = change(write_training(tmp_path, "recommendation"), passes=passes)
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 0
    assert "50.0% of the encoder's weights are 0: onnxruntime computes them all the same" in capsys.readouterr().out
    recipe = change(recipe, passes=[{"sparsify": {}}])
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "give share, or pattern" in capsys.readouterr().err
