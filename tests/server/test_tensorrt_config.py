"""What a config says to the `tensorrt` backend, and what it refuses: read without a GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from plan_config import (
    ConfigError,
    Tensor,
    check_features,
    check_tensors,
    host_code_allowed,
    plan_path,
    profile_numbers,
    stamp,
    without_effect,
)
from plan_graphs import graphs
from plan_shapes import Graph, Profile
from tensorrt_configs import cuda_graphs, model_config, spec

TENSORS = [Tensor("x", True, "float32", (-1, 4)), Tensor("y", False, "float32", (-1, 4))]
PROFILE = Profile(0, *({"x": (size, 4)} for size in (1, 8, 8)))


def profiles(*lengths: int) -> list[Profile]:
    return [Profile(number, *({"x": (size, length)} for size in (1, 4, 8))) for number, length in enumerate(lengths)]


def refusal(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        call(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_config_that_fits_is_taken() -> None:
    check_features(model_config(), "GPU")
    check_tensors(model_config(), TENSORS, [PROFILE])
    reshaped = {"name": "x", "data_type": "TYPE_FP32", "dims": [2, 2], "reshape": {"shape": [4]}}
    check_tensors(model_config(input=[reshaped]), TENSORS, [PROFILE])
    assert without_effect(model_config()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"input": [{"name": "x", "allow_ragged_batch": True}]},
            "tensor 'x' has allow_ragged_batch, which the embedded",
        ),
        ({"output": [{"name": "y", "is_shape_tensor": True}]}, "tensor 'y' has is_shape_tensor"),
        ({"input": [{"name": "x", "optional": True}]}, "tensor 'x' has optional"),
        ({"input": [{"name": "x", "is_non_linear_format_io": True}]}, "tensor 'x' has is_non_linear_format_io"),
        ({"batch_input": [{}]}, "the config has batch_input"),
        ({"sequence_batching": {"direct": {}}}, "the config has sequence_batching"),
    ],
)
def test_what_the_backend_does_not_do_is_refused(change: dict[str, Any], message: str) -> None:
    assert message in refusal(check_features, model_config(**change), "GPU")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": [{"name": "z", "data_type": "TYPE_FP32", "dims": [4]}]}, "has the inputs z, the plan has x"),
        ({"output": [{"name": "z", "data_type": "TYPE_FP32", "dims": [4]}]}, "has the outputs z, the plan has y"),
        ({"input": []}, "the config has the inputs , the plan has x"),
        ({"input": [{"name": "x", "data_type": "TYPE_INT32", "dims": [4]}]}, "'x' must be TYPE_FP32, as in the plan"),
        (
            {"input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [5]}]},
            r"has dims \[-1, 5\], the batch's included",
        ),
        ({"output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4, 1]}]}, r"the plan has \[-1, 4\]"),
        (
            {"max_batch_size": 9},
            "max_batch_size must be at most 8, what the instance's optimization profiles hold, got 9",
        ),
    ],
)
def test_what_does_not_fit_the_plan_is_refused(change: dict[str, Any], message: str) -> None:
    assert re.search(message, refusal(check_tensors, model_config(**change), TENSORS, [PROFILE]))


def test_settings_without_effect_are_named() -> None:
    optimization = {
        "cuda": {"output_copy_stream": True},
        "eager_batching": True,
        "input_pinned_memory": {"enable": False},
    }
    parameters = {"execution_context_allocation_strategy": {"string_value": "ON_PROFILE_CHANGE"},
                  "other": {"string_value": "1"}}  # fmt: skip
    warnings = without_effect(model_config(optimization=optimization, parameters=parameters))
    assert [warning.split(" has no effect here")[0] for warning in warnings] == [
        "optimization.cuda.output_copy_stream",
        "optimization.eager_batching",
        "optimization.input_pinned_memory.enable: false",
        "parameter 'execution_context_allocation_strategy' with value 'ON_PROFILE_CHANGE'",
        "parameter 'other' with value '1'",
    ]


def test_plan_is_the_gpus_own_or_the_default(tmp_path: Path) -> None:
    for name in ("model.plan", "model_8.0.plan", "named.plan"):
        (tmp_path / name).touch()
    kinds = {"cc_model_filenames": {"8.0": "model_8.0.plan", "9.0": "model_9.0.plan"}}
    assert plan_path(model_config(**kinds), tmp_path, "8.0").name == "model_8.0.plan"
    assert plan_path(model_config(**kinds), tmp_path, "7.5").name == "model.plan"
    assert plan_path(model_config(default_model_filename="named.plan"), tmp_path, "8.0").name == "named.plan"
    assert plan_path(model_config(default_model_filename=""), tmp_path, "8.0").name == "model.plan"
    missing = refusal(plan_path, model_config(**kinds), tmp_path, "9.0")
    assert re.fullmatch(r"unable to find '.*/model_9\.0\.plan' for a GPU of compute capability 9\.0", missing)
    (tmp_path / "build_plan.sh").touch()
    assert refusal(plan_path, model_config(**kinds), tmp_path, "9.0").endswith("build_plan.sh builds it")


def test_stamp_that_is_none_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "model.plan"
    assert stamp(path) == {}
    for text in ("{", "[]"):
        path.with_name("model.plan.json").write_text(text)
        assert stamp(path) == {}
    path.with_name("model.plan.json").write_text('{"tensorrt": "10"}')
    assert stamp(path) == {"tensorrt": "10"}


def test_profiles_are_those_of_the_instances_group() -> None:
    groups = [{"name": "m_1", "profile": ["2", "0", "2"]}, {"name": "m_10", "profile": ["1"]},
              {"name": "m_2", "profile": []}]  # fmt: skip
    config = {**model_config(), "instance_group": groups}
    for instance, numbers in (("m_1_0", [0, 2]), ("m_1", [0, 2]), ("m_10_0", [1]), ("m_2_0", [0]), ("n_0", [0])):
        assert profile_numbers(config, instance, count=3) == numbers
    assert "0 to 1, got '2'" in refusal(profile_numbers, config, "m_1_0", count=2)
    config["instance_group"] = [{"name": "m_0", "profile": ["large"]}]
    assert "got 'large'" in refusal(profile_numbers, config, "m_0_0", count=2)


@pytest.mark.parametrize(("value", "allowed"), [("true", True), ("YES", True), ("1", True), ("false", False)])
def test_host_code_is_allowed_by_a_parameter_alone(value: str, allowed: bool) -> None:
    assert host_code_allowed(model_config(parameters={"version-compatible": {"string_value": value}})) == allowed
    assert not host_code_allowed(model_config())


def test_host_code_needs_a_truth_value() -> None:
    config = model_config(parameters={"version-compatible": {"string_value": "maybe"}})
    assert "must be true or false, got 'maybe'" in refusal(host_code_allowed, config)


def test_no_graphs_unless_asked_for() -> None:
    assert graphs(model_config(), [PROFILE]) == ([], [])
    assert graphs(model_config(optimization={"cuda": {"graphs": False, "graph_spec": [spec(1)]}}), [PROFILE]) == (
        [],
        [],
    )


def test_graphs_of_the_specs_are_captured_in_every_profile_that_holds_them() -> None:
    wide, narrow = spec(2, width=6), spec(4, least=3)
    found, warnings = graphs(model_config(optimization=cuda_graphs(wide, narrow)), profiles(4, 6, 4))
    assert found == [Graph(1, {"x": (2, 6)}), Graph(0, {"x": (4, 4)}, 3), Graph(2, {"x": (4, 4)}, 3)]
    assert warnings == []
    found, warnings = graphs(model_config(optimization=cuda_graphs(spec(9), spec(1))), [PROFILE])
    assert found == [Graph(0, {"x": (1, 4)})]
    assert warnings == [
        "optimization.cuda.graph_spec with batch_size 9 and x [4] is not captured: no optimization profile holds it"
    ]


def test_without_specs_graphs_are_of_the_usual_batches_at_the_profiles_opt_shapes() -> None:
    optimization = {"cuda": {"graphs": True}}

    def batches(**config: Any) -> list[int]:
        return [
            graph.shapes["x"][0] for graph in graphs(model_config(optimization=optimization, **config), [PROFILE])[0]
        ]

    assert batches() == [1, 2, 3, 4, 6, 8]
    assert batches(max_batch_size=5) == [1, 2, 3, 4, 5]
    assert batches(dynamic_batching={}) == [1, 8]
    assert batches(dynamic_batching={"preferred_batch_size": [4, 2]}) == [1, 2, 4, 8]
    found, _ = graphs(model_config(optimization=optimization, max_batch_size=0), [PROFILE])
    assert found == [Graph(0, {"x": (8, 4)})]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (spec(0), "batch_size must be at least 1, got 0"),
        ({"batch_size": 1, "input": {"z": {"dim": ["4"]}}}, "must have a shape for each input, x, got z"),
        (spec(2, least=3), "graph_lower_bound must be below its graph, got with batch_size 2"),
    ],
)
def test_specs_that_contradict_themselves_are_refused(given: dict[str, Any], message: str) -> None:
    assert message in refusal(graphs, model_config(optimization=cuda_graphs(given)), [PROFILE])


def test_lower_bound_of_other_dimensions_is_not_padded_to() -> None:
    given = spec(4, least=3, least_width=2)
    found, warnings = graphs(model_config(optimization=cuda_graphs(given)), [PROFILE])
    assert not found[0].takes({"x": (4, 2)})
    assert "is padded in its batch alone" in warnings[0]
