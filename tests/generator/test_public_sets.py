"""The accuracy of the shipped recipe on public data sets, where they lie beside the checkout."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import yaml
from tritonpress_generator import public_sets
from tritonpress_generator.build import build
from tritonpress_generator.errors import InputError

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "generator" / "recipes"
RECIPE = RECIPES / "recommendation.yaml"
DATA = Path(os.environ.get("TRITONPRESS_DATA", ROOT.parent / "shared" / "data"))

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the checkout")


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "name"),
    [
        *itertools.product(["recommendation", "recommendation_compressed"], sorted(public_sets.SETS)),
        # Of next purchases the encoder knows so little (`ndcg@10` 0.01, 0.03) that chance decides (README, Accuracy).
        ("recommendation_distilled", "scifact"),
    ],
)
def test_int8_keeps_99_percent_of_ndcg(
    tmp_path: Path, start: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = public_sets.write(name, DATA, tmp_path / name, recipe=RECIPES / f"{start}.yaml")
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["gate"] |= {"keep": 0.2, "confidence": 0.95}  # certain of any of them: the interval is wanted
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    gate = build(path, tmp_path / "repository").manifest["gate"]
    low, high = gate["kept"]
    with capsys.disabled():
        print(
            f"\n{start} on {name}: {gate['metric']} {gate['served']:.4f} of {gate['baseline']:.4f}, kept "
            f"{gate['served'] / gate['baseline']:.2%} [{low:.2%}–{high:.2%} at 95 %] on {gate['examples']} examples"
        )
    assert gate["served"] >= 0.99 * gate["baseline"] > 0


@needs_data
@pytest.mark.parametrize("name", sorted(public_sets.SETS))
def test_public_set_becomes_a_catalogue(tmp_path: Path, name: str) -> None:
    from tritonpress_generator import recipe as recipes

    recipe = recipes.load(public_sets.write(name, DATA, tmp_path, recipe=RECIPE))
    data = recipe.task.module.load_data(recipe)
    assert recipe.name == name
    assert len(data.items) > 3000
    assert len(data.queries) >= 400


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scifact in .*: cannot be read"):
        public_sets.write("scifact", tmp_path, tmp_path / "out", recipe=RECIPE)
