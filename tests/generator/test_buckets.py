"""Borders of length buckets: the ones with the least padding, and what the recipe may say."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonpress_generator.checkpoint import resolve
from tritonpress_generator.errors import InputError
from tritonpress_generator.lengths import buckets
from tritonpress_generator.pretrained import load_tokenizer
from tritonpress_generator.recipe import load
from tritonpress_generator.recipe_text import ServeConfig
from tritonpress_generator.signature import Signature
from tritonpress_generator.steps.tokenizer.text_encoder import TextEncoder

RECIPE = Path(__file__).parents[2] / "generator" / "recipes" / "recommendation.yaml"


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=30), count=st.integers(1, 5))
def test_no_other_borders_pad_less(lengths: list[int], count: int) -> None:
    chosen = buckets.choose(lengths, count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= count
    assert chosen[-1] == max(lengths)
    others = sorted(set(lengths) - {max(lengths)})
    best = min(
        buckets.waste(lengths, [*some, max(lengths)])
        for size in range(min(count, len(others) + 1))
        for some in combinations(others, size)
    )
    assert buckets.waste(lengths, chosen) == pytest.approx(best)


@pytest.mark.parametrize(("texts", "padding"), [("calibration", 0.08), ("samples", 0.18)])
def test_padding_of_four_borders_on_the_shipped_texts(texts: str, padding: float) -> None:
    """The queries have 4 to 32 tokens: no four borders come below 17 % (seven come below 8 %)."""
    recipe = load(RECIPE)
    tokenizer = load_tokenizer(resolve(recipe.checkpoint, base=RECIPE.parent))
    encoder = TextEncoder(tokenizer, max_length=256, max_bytes=8192)
    shipped = getattr(recipe.task.module.load_data(recipe), texts)["QUERY"]
    lengths = [len(row) for row in encoder.encode([text.encode() for text in shipped]).ids]
    assert buckets.waste(lengths, buckets.choose(lengths, 4)) <= padding


def test_the_longest_text_always_has_a_bucket() -> None:
    settings = buckets.tokenizer_settings(
        buckets.Config(count=2), ServeConfig(max_length=64), Signature({}), [3, 3, 9], None
    )
    assert settings == {"borders": [3, 9, 64]}


@pytest.mark.parametrize("borders", [[], [32, 16, 64], [16, 16, 64], [0, 64], [16, 32]])
def test_borders_that_cannot_serve_are_refused(borders: list[int]) -> None:
    with pytest.raises(InputError, match=r"serve\.lengths: must be ascending and end with serve\.max_length \(64\)"):
        buckets.tokenizer_settings(
            buckets.Config(borders=borders), ServeConfig(max_length=64), Signature({}), [3], None
        )
