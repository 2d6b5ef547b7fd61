"""Units are taken out of every family, and what is left answers as the whole model does with those units at 0."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny_encoders as tiny
import torch
import transformers as hf
from tritonpress_generator.errors import InputError
from tritonpress_generator.structure import Group, depth, groups, keep_layers, layers, product_pattern, projections

FAMILIES = [family for family in tiny.FAMILIES if family != "mpnet"]


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 90, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return ids, mask


def masked(model: Any, gone: dict[int, list[int]]) -> torch.Tensor:
    """Returns the model's answer with what the units of some groups give set to 0."""
    handles = []
    for number, group in enumerate(groups(model.encoder)):

        def hook(_: Any, inputs: tuple[torch.Tensor], group: Group = group, number: int = number) -> Any:
            by_unit = inputs[0].unflatten(-1, (group.units, group.width)).clone()
            by_unit[..., gone.get(number, []), :] = 0
            return (by_unit.flatten(-2),)

        handles.append(group.read_by.register_forward_pre_hook(hook))
    answer: torch.Tensor = model(*tokens())
    for handle in handles:
        handle.remove()
    return answer


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_answers_as_the_masked_model(family: str) -> None:
    model = tiny.make(family, "own")
    pruned = copy.deepcopy(model)
    gone: dict[int, list[int]] = {}
    with torch.no_grad():
        for number, group in enumerate(groups(pruned.encoder)):
            # Of one unit alone (EuroBERT's shared key), nothing can go.
            gone[number] = [number % group.units, *range(3, group.units, 5)] if group.units > 1 else []
            group.keep([unit for unit in range(group.units) if unit not in gone[number]])
        assert torch.allclose(pruned(*tokens()), masked(model, gone), atol=1e-5)
        assert not torch.allclose(pruned(*tokens()), model(*tokens()), atol=1e-5)
    left, whole = (sum(p.numel() for p in m.parameters()) for m in (pruned, model))
    assert left < whole


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_groups_are_all_layers_of_a_family(family: str) -> None:
    model = tiny.make(family, "own")
    kinds = ("ffn",) if family == "mpnet" else ("heads", "ffn")
    found = groups(model.encoder, kinds)  # type: ignore[arg-type]
    layers = 1 if family == "albert" else 2
    assert [(group.kind, group.layer) for group in found] == [(k, i) for i in range(layers) for k in kinds]
    assert {group.units for group in found if group.kind == "ffn"} == {64}
    assert {group.units for group in found if group.kind == "heads"} <= {1 if family == "eurobert" else 2}
    assert [group.calls for group in found] == [2 // layers] * len(found)


def test_multiplications_of_a_unit() -> None:
    heads, ffn, *_ = groups(tiny.make("bert", "own").encoder)
    # Query, key, value and output of 32 × 16, and twice 10 tokens of 16; two layers of 32.
    assert heads.products(10) == 4 * 32 * 16 + 2 * 10 * 16
    assert ffn.products(10) == 2 * 32


def test_family_whose_heads_share_a_bias_is_refused() -> None:
    with pytest.raises(InputError, match="heads of mpnet share a bias of positions over all layers"):
        groups(tiny.make("mpnet", "own").encoder)


ASKED: list[Callable[[Any], object]] = [
    groups, layers, projections, depth, lambda model: keep_layers(model, [0]), lambda model: product_pattern(model, 0),
]  # fmt: skip


@pytest.mark.parametrize("asked", ASKED)
def test_unknown_family_is_refused(asked: Callable[[Any], object]) -> None:
    model = tiny.make("bert", "own").encoder
    model.config.model_type = "mamba"
    with pytest.raises(InputError, match="the layers of mamba are not known; known: bert, roberta"):
        asked(model)


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("several", ["num_hidden_groups", "inner_group_num"])
def test_several_groups_of_layers_are_refused(several: str, asked: Callable[[Any], object]) -> None:
    config_class, values = tiny.FAMILIES["albert"]
    model = hf.AutoModel.from_config(config_class(**values | {several: 2}))
    with pytest.raises(InputError, match="an albert must have one group of one layer, has several"):
        asked(model)
