"""Whatever a `cuts.json` says, it is refused in one line, or what comes of it computes."""

from __future__ import annotations

import base64
import copy
import json
import os
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_training import material_of, write_training
from tritonpress_generator import cuts
from tritonpress_generator.compression import Compressed, Material
from tritonpress_generator.errors import InputError
from tritonpress_generator.passes import crop, prune, restore

CONFIG = restore.Config(folder="small")
VALUES = st.sampled_from(
    [None, True, -1, 0, 1, 2, 3, 70, 2**70, 0.5, float("inf"), float("nan"), "", "a", "/w==", [], {}, [1], [0, 0],
     [[1]], {"bits": ""}, {"bits": "AA=="}, {"bits": "gA=="}, {"bits": "/////w=="}, {"bits": 1}, {"a": 1, "b": 2}]
)  # fmt: skip


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Compressed, Material, dict[str, Any]]:
    """Returns a model, what passes may use, and what is written of cuts of every kind."""
    whole, material = material_of(write_training(tmp_path_factory.mktemp("cuts"), "recommendation"))
    everything = crop.Config(layers=[0, 1], vocabulary=crop.VocabularyConfig(), positions=50, one_segment=True)
    made = crop.apply(whole, everything, material)
    made = prune.apply(made, prune.Config(heads=0.25, ffn=0.5, round_to=8, reconstruct=False), material)
    content = {
        "checkpoint": [material.checkpoint.sha256, material.checkpoint.adapter_sha256],
        "cuts": cuts.written(made.cuts),
        "chosen": {"temperature": 1.5},
        "report": made.report,
    }
    assert {name for entry in content["cuts"] for name in entry} == set(cuts._CUTS)
    (material.recipe.folder / "small").mkdir()
    return whole, material, json.loads(json.dumps(content))


def restored(cut: tuple[Compressed, Material, Any], text: str) -> Compressed:
    whole, material, _ = cut
    (material.recipe.file("small") / restore.CUTS).write_text(text, encoding="utf-8")
    return restore.apply(whole, CONFIG, material)


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Yields what holds each value, and its key there."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield data, key
            yield from places(value)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_other_values_are_refused_in_one_line_or_compute(
    cut: tuple[Compressed, Material, dict[str, Any]], data: st.DataObject
) -> None:
    content = copy.deepcopy(cut[2])
    owner, key = data.draw(st.sampled_from([*places(content)]))
    if data.draw(st.booleans()):
        owner[key] = data.draw(VALUES)
    else:
        del owner[key]
    try:
        result = restored(cut, json.dumps(content))
    except InputError as exc:
        assert "\n" not in str(exc)
        assert "passes." in str(exc)
        return
    head, _ = cut[1].head(result.model)
    ids = torch.tensor([[2, 3]])
    with torch.inference_mode():
        assert torch.isfinite(head(ids, torch.ones_like(ids))).all()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cuts", [1], "cuts.json cannot be read (cuts.0: input should be a valid dictionary)"),
        ("cuts", [{"layers": 1, "heads": 2}], "cuts.json cannot be read (cuts.0: dictionary should have at most 1"),
        ("cuts", [{}], "cuts.json cannot be read (cuts.0: dictionary should have at least 1"),
        ("cuts", {"layers": [0]}, "cuts.json cannot be read (cuts: input should be a valid list)"),
        ("checkpoint", [], "cuts.json cannot be read (checkpoint: list should have at least 2 items"),
        ("report", [], "cuts.json cannot be read (report: input should be a valid dictionary)"),
        ("chosen", {"temperature": "hot"}, "cuts.json cannot be read (chosen.temperature: input should be a valid"),
        ("cuts", [{"layers": []}], "the cut 'layers' does not fit a model of 2 layers (ValueError: must keep"),
        ("cuts", [{"layers": [1, 0]}], "must keep at least one of 2, each once, in ascending order"),
        ("cuts", [{"heads": [[], [0]]}], "the cut 'heads' does not fit"),
        ("cuts", [{"heads": [{"bits": ""}, {"bits": "gA=="}]}], "the cut 'heads' does not fit"),
        ("cuts", [{"layers": "01"}], "the cut 'layers' does not fit"),
        ("cuts", [{"layers": [0.5]}], "the cut 'layers' does not fit"),
        ("cuts", [{"layers": {"bits": "gAAAAA=="}}], "a mask must be of 2 things at most, has room for 48"),
        ("cuts", [{"positions": 10**12}], "must keep from 1 to 64 rows, got 1000000000000"),
        ("cuts", [{"positions": 0}], "must keep from 1 to 64 rows, got 0"),
        ("cuts", [{"positions": float("inf")}], "the cut 'positions' does not fit"),
        ("cuts", [{"vocabulary": [10**6]}], "the cut 'vocabulary' does not fit"),
    ],
)  # fmt: skip
def test_message_says_what_is_wrong(
    cut: tuple[Compressed, Material, dict[str, Any]], key: str, value: Any, message: str
) -> None:
    with pytest.raises(InputError) as raised:
        restored(cut, json.dumps(cut[2] | {key: value}))
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["layers", "heads", "ffn", "vocabulary"])
def test_mask_of_any_length_is_not_counted_out(cut: tuple[Compressed, Material, dict[str, Any]], name: str) -> None:
    mask = {"bits": base64.b64encode(b"\xff" * (1 << 17)).decode()}
    text = json.dumps(cut[2] | {"cuts": [{name: [mask, mask] if name in {"heads", "ffn"} else mask}]})
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=f"the cut '{name}' does not fit"):
            restored(cut, text)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A million places as numbers take 40 MB.
    assert most < 8 << 20


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 5000 + "]" * 5000, '"\\ud800"'])
def test_what_is_no_object_is_refused(cut: tuple[Compressed, Material, dict[str, Any]], text: str) -> None:
    with pytest.raises(InputError, match=r"cuts\.json cannot be read \(.*\); give a folder that tritonpress distill"):
        restored(cut, text)


def test_pipe_is_not_waited_for(cut: tuple[Compressed, Material, dict[str, Any]]) -> None:
    path = cut[1].recipe.file("small") / restore.CUTS
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(InputError, match="is no file"):
        restore.apply(cut[0], CONFIG, cut[1])
    path.unlink()
