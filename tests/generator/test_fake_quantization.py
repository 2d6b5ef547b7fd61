"""Fake quantisation computes what INT8 leaves, hands the gradient on, and makes a model that INT8 hurts less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import change, write_training
from tritonpress_generator import cli, forms
from tritonpress_generator import recipe as recipes
from tritonpress_generator.infer import Infer
from tritonpress_generator.passes import distill
from tritonpress_generator.progress import Progress
from tritonpress_generator.quantization import INT7_MAX, quantize_symmetric, quantize_uint8, uint8_parameters
from tritonpress_generator.training.fake_quantization import fake_quantize, fake_quantized
from tritonpress_generator.workload import Workload


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31 - 1), st.sampled_from([INT7_MAX, 127]))
def test_layer_computes_as_its_codes_do(outputs: int, inputs: int, seed: int, weight_codes: int) -> None:
    torch.manual_seed(seed)
    linear = torch.nn.Linear(inputs, outputs)
    values = torch.randn(5, inputs) * 3
    end = fake_quantize(linear, weight_codes=weight_codes)
    with torch.no_grad():
        got = linear(values)
    end()
    codes, scales = quantize_symmetric(linear.weight.detach().numpy(), axis=0, largest_code=weight_codes)
    scale, zero_point = uint8_parameters(float(values.min()), float(values.max()))
    read = (quantize_uint8(values.numpy(), scale, zero_point).astype(np.float32) - zero_point) * scale
    expected = read @ (codes * scales[:, None]).T + linear.bias.detach().numpy()
    # A value in the middle of two codes may go to either, as FP32 rounds: that is one step of one input.
    apart = np.abs(got.numpy() - expected)
    step = float(scale) * float(np.abs(linear.weight.detach().numpy()).max())
    assert apart.max() <= 1e-4 + 1.01 * step
    assert (apart > 1e-4).mean() <= 0.25
    with torch.no_grad():
        assert torch.equal(linear(values), torch.nn.functional.linear(values, linear.weight, linear.bias))


def test_gradient_goes_straight_through_within_the_range() -> None:
    values = torch.tensor([-3.0, -0.4, 0.0, 0.3, 5.0], requires_grad=True)
    fake_quantized(values, torch.tensor(0.5), -2, 4).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 0]
    codes = fake_quantized(values, torch.tensor(0.5), -2, 4)
    assert codes.tolist() == [-1, -0.5, 0, 0.5, 2]


def test_adapter_is_quantised_with_the_weights_that_it_changes() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(16, 12), torch.nn.Tanh(), torch.nn.Linear(12, 8))
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False)
    adapted, values = peft.get_peft_model(plain, config), torch.randn(5, 16)
    end = fake_quantize(adapted, weight_codes=INT7_MAX)
    got = adapted(values)
    got.square().sum().backward()
    end()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert {name.rsplit(".", 3)[1] for name in trained} == {"lora_A", "lora_B"}
    with torch.no_grad():
        exact = adapted(values)
        merged = adapted.merge_and_unload()
        end = fake_quantize(merged, weight_codes=INT7_MAX)
        expected = merged(values)
        end()
        assert torch.allclose(merged(values), exact, atol=1e-5)
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(got, exact, atol=1e-3)


def test_adapters_whose_inputs_are_dropped_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distill: dict[str, Any] = {"fake_quantize": 7, "lora": {"rank": 2, "dropout": 0.1}}
    recipe = change(write_training(tmp_path, "recommendation"), passes=[{"distill": distill}])
    assert cli.main(["build", str(recipe), "--out", str(tmp_path / "out")]) == 2
    assert "of whose inputs lora.dropout drops none; set that 0" in capsys.readouterr().err


def test_lower_precision_rounds_nothing_of_it() -> None:
    torch.manual_seed(0)
    linear, values = torch.nn.Linear(16, 8), torch.randn(5, 16)
    end = fake_quantize(linear, weight_codes=INT7_MAX)
    with torch.no_grad():
        expected = linear(values)
        with torch.autocast("cpu", torch.bfloat16):
            got = linear(values)
            lower = torch.nn.functional.linear(values, linear.weight, linear.bias)
    end()
    assert lower.dtype == torch.bfloat16
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_what_is_no_number_stays_none() -> None:
    linear = torch.nn.Linear(4, 3)
    end = fake_quantize(linear, weight_codes=INT7_MAX)
    with torch.no_grad():
        for value in (float("nan"), float("inf")):
            assert not torch.isfinite(linear(torch.full((2, 4), value))).any()
    end()


@pytest.mark.parametrize(
    ("seed", "how"),
    [
        (0, {"learning_rate": 1e-4}),
        pytest.param(1, {"learning_rate": 1e-4}, marks=pytest.mark.slow),
        (0, {"learning_rate": 3e-4, "lora": {"rank": 8, "alpha": 16}}),
    ],
)
def test_int8_costs_less_after_the_training(tmp_path: Path, seed: int, how: dict[str, Any]) -> None:
    """The same model, served in INT8 as it is and as the training has left it: whose answers are nearer to FP32's."""
    path = change(write_training(tmp_path, "recommendation"), graph=["fuse", {"quantize": {"samples": 64}}])
    workload = Workload.load(recipes.load(path), Progress(shown=False))
    material = workload.material()
    # Nothing is cut or dropped out, so that INT8 alone is what there is to learn; at thrice the rate, or with dropout,
    # the training itself moves this model further from FP32 than INT8 does.
    config = distill.Config(fake_quantize=7, epochs=16, batch_size=8, dropout=0.0, precision="fp32", seed=seed, **how)
    trained = distill.apply(material.original, config, material)
    assert not [name for name, part in trained.model.named_modules() if "forward" in vars(part)]

    def vectors(infer: Infer) -> np.ndarray:
        answers = material.recipe.finetune.module.answers
        return np.stack(
            answers(infer, workload.signature, material.examples.held_out, workload.recipe, workload.tokenizer)
        )

    exact, apart = vectors(workload.baseline), []
    for model in (material.original, trained):
        source = workload.changed(model).source(material=material)
        served = forms.compile_forms(workload.recipe, source)["exact"].infer(workload.recipe.engine)
        apart.append(float((1 - (vectors(served) * exact).sum(-1)).mean()))
    as_it_is, after_training = apart
    assert after_training < 0.8 * as_it_is
