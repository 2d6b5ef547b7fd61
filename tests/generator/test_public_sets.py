"""The accuracy of the shipped recipe on public data sets, where they lie beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tritonpress_generator import public_sets
from tritonpress_generator.build import build
from tritonpress_generator.errors import InputError

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "generator" / "recipes" / "recommendation.yaml"
DATA = Path(os.environ.get("TRITONPRESS_DATA", ROOT.parent / "shared" / "data"))

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the checkout")


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(public_sets.SETS))
def test_int8_keeps_99_percent_of_ndcg(tmp_path: Path, name: str) -> None:
    recipe = public_sets.write(name, DATA, tmp_path / name, recipe=RECIPE)
    built = build(recipe, tmp_path / "repository")
    gate = built.manifest["gate"]
    print(name, gate, built.rows)
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
