"""What the builder is told, and the graphs that it gets, from a recipe's settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import plan_graphs
import plan_shapes
import pytest
from google.protobuf import json_format
from tiny_encoders import asked, make, signature
from tritonpress_generator import export
from tritonpress_generator.engines import tensorrt as engine
from tritonpress_generator.engines.onnxruntime import session_infer
from tritonpress_generator.errors import InputError
from tritonpress_generator.plans import builder, pending
from tritonpress_generator.plans.profiles import Profile

GIVES = signature(make("bert", export.ATTENTION, "mean"))
ASKED = asked(GIVES, "buckets", borders=(16, 48))


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ([], "must have at least 1 profile"),
        ([{"batch": [1, 4, 4], "length": [16, 16, 48]}], "none holds a batch of 5 at 16 tokens"),
        ([{"batch": [1, 8, 8], "length": [1, 16, 32]}], "none holds a batch of 1 at 48 tokens"),
        ([{"batch": [4, 2, 8], "length": [1, 16, 48]}], r"\[0\].batch: must be \[min, opt, max\], ascending"),
    ],
)
def test_profiles_that_exclude_what_is_asked_are_refused(profiles: list[dict[str, list[int]]], message: str) -> None:
    config = engine.Config(optimization_profiles=[Profile(**profile) for profile in profiles])
    with pytest.raises(InputError, match=message):
        engine.plan_settings(config, ASKED)


def test_settings_say_what_the_recipe_says() -> None:
    config = engine.Config(workspace_mib=2, refit=True, compute_capabilities=["8.0", "9.0"], instances=2)
    settings = engine.plan_settings(config, ASKED)
    assert settings["workspace_bytes"] == 2 << 20
    assert settings["refit"] is True
    # The median of what is asked, padded to its border; one text, and a full batch.
    assert settings["shapes"] == [[1, 16], [8, 16]]
    model = engine.model_config(config, ASKED)
    assert dict(model.cc_model_filenames) == {"8.0": "model_8.0.plan", "9.0": "model_9.0.plan"}
    assert model.instance_group[0].count == 2
    assert "version-compatible" not in model.parameters
    model = engine.model_config(engine.Config(version_compatible=True), ASKED)
    assert model.parameters["version-compatible"].string_value == "true"


def test_embedded_server_captures_a_graph_for_every_batch_at_every_border() -> None:
    model = engine.model_config(engine.Config(), ASKED)
    model.max_batch_size = ASKED.max_batch_size
    config = json_format.MessageToDict(
        model, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    profiles = [
        plan_shapes.Profile(
            number,
            *(dict.fromkeys(GIVES.inputs, (batch, length)) for batch, length in zip(*bounds, strict=True)),
        )
        for number, profile in enumerate(engine.plan_settings(engine.Config(), ASKED)["profiles"])
        for bounds in [(profile["batch"], profile["length"])]
    ]
    graphs, warnings = plan_graphs.graphs(config, profiles)
    assert warnings == []
    planner = plan_shapes.Planner(profiles, graphs, True)
    for length in ASKED.borders:
        for batch in range(1, ASKED.max_batch_size + 1):
            (run,), refused = planner.plan([dict.fromkeys(GIVES.inputs, (batch, length))])
            assert not refused
            assert run.graph is not None
            assert run.shapes["input_ids"][0] < 2 * batch


def test_older_releases_get_a_graph_of_fp32_and_flags() -> None:
    model = make("bert", export.ATTENTION, "mean")
    graph = export.export(model, GIVES)
    rungs = engine.rungs(graph, graph, engine.Config(release="24.02"))
    assert list(rungs) == ["fp32", "fp16"]
    assert pending.types(rungs["fp16"]) == []
    assert rungs["fp16"].opset_import[0].version == 17


def test_int32_inputs_change_no_answer() -> None:
    model = make("bert", export.ATTENTION, "mean")
    graph = export.export(model, GIVES)
    ids = np.arange(5, 17)[None]
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    expected = session_infer(graph.SerializeToString())(feed)
    narrow = engine.rungs(graph, graph, engine.Config(precision="fp32"))["fp32"]
    got = session_infer(narrow.SerializeToString())({name: value.astype(np.int32) for name, value in feed.items()})
    assert np.abs(got["embedding"] - expected["embedding"]).max() <= 1e-6


def test_mistake_is_said_before_anything_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Callable[..., object]] = []
    monkeypatch.setattr(builder, "build", calls.append)
    config = engine.Config(release="never")
    with pytest.raises(InputError, match="must be a release"):
        engine.build({}, tmp_path / "1", config, ASKED)
    assert calls == []
    assert not (tmp_path / "1").exists()


def test_stamps_of_plans_that_were_built_here_are_for_the_manifest(tmp_path: Path) -> None:
    assert engine.measured(tmp_path, engine.Config(), ASKED) == {}
    for name in ("model_8.0.plan", "model_9.0.plan"):
        (tmp_path / name).write_bytes(b"plan")
        (tmp_path / f"{name}.json").write_text('{"tensorrt": "10.3.0", "gpu": "a GPU"}')
    assert engine.measured(tmp_path, engine.Config(), ASKED) == {
        "plans": {
            "model_8.0.plan": {"tensorrt": "10.3.0", "gpu": "a GPU"},
            "model_9.0.plan": {"tensorrt": "10.3.0", "gpu": "a GPU"},
        }
    }
