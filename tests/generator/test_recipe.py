"""A recipe is checked before anything is done, and what is wrong is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sources import write_recipe
from tritonpress_generator import plugins
from tritonpress_generator.errors import InputError
from tritonpress_generator.recipe import load
from tritonpress_generator.recipe_text import GateConfig, RecipeText, ServeConfig

RECIPES = sorted((Path(__file__).parents[2] / "generator" / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipe_loads(path: Path) -> None:
    assert load(path).name == path.stem


AT_LEAST_8 = "greater than or equal to 8, got 7"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"serv": {}}, "serv: unknown key; allowed: name, task, checkpoint"),
        ({"serve": {"max_batch_sise": 4}}, "serve.max_batch_sise: unknown key; allowed: max_batch_size"),
        ({"serve": {"max_batch_size": 0}}, "serve.max_batch_size: input should be greater than or equal to 1, got 0"),
        (
            {"graph": ["fuze"]},
            "graph[0]: unknown word 'fuze'; did you mean 'fuse'? available: fixed_point, fuse, nncf, qdq, quantize, "
            "weight_only",
        ),
        (
            {"graph": ["fuse", "fp16"]},
            "graph[1]: unknown word 'fp16'; FP16 is a setting of engines: precision: fp16 of tensorrt or "
            "onnxruntime_gpu; available: fixed_point, fuse",
        ),
        (
            {"graph": [{"bf16": {}}]},
            "BF16 is a setting of engines: precision: bf16 of tensorrt or openvino; available: ",
        ),
        *(
            ({"graph": [{word: {"samples": 7, **more}}]}, f"graph[0].{word}: samples: input should be {AT_LEAST_8}")
            for word, more in [("quantize", {}), ("qdq", {}), ("nncf", {}), ("fixed_point", {"bits": 8})]
        ),
        ({"graph": [{"quantize": {"precision": "int3"}}]}, "graph[0].quantize: precision: input should be 'int8'"),
        (
            {"graph": [{"quantize": {"calibration": "mse"}}]},
            "graph[0].quantize: calibration: input should be 'min_max', 'entropy' or 'percentile', got 'mse'",
        ),
        (
            {"graph": [{"quantize": {"percentile": 50.0}}]},
            "graph[0].quantize: percentile: input should be greater than",
        ),
        ({"graph": [{"fuse": {}, "quantize": {}}]}, "graph[0]: give one word"),
        ({"passes": ["prune_everything"]}, "passes[0]: unknown word 'prune_everything'"),
        ({"task": "translation"}, "task: unknown word 'translation'; available: classification, question"),
        ({"task": "recommendation"}, "task.recommendation: catalogue: is missing"),
        ({"engine": "onnx"}, "engine: unknown word 'onnx'"),
        ({"gate": {"dataset": "queries.jsonl", "metric": "f1"}}, "gate.metric: unknown metric 'f1'"),
        ({"gate": {"dataset": "q", "metric": "ndcg@10", "keep": 1.5}}, "gate.keep: input should be less than or equal"),
        ({"gate": {"dataset": "q", "metric": "ndcg@10", "keep": 1.0}}, "gate: keep must be below 1, is 1, which no"),
        (
            {"gate": {"dataset": "q", "metric": "ndcg@10", "keep": 0.9, "agreement": 1.0, "confidence": 0.5}},
            "gate: agreement must be below 1, is 1, which no number of examples makes certain; lower it, or give conf",
        ),
        ({"name": "Not A Name"}, "name: string should match pattern"),
        ({"checkpoint": {"source": "x", "sha256": "abc"}}, "checkpoint.sha256: string should match pattern"),
        ({"checkpoint": {}}, "checkpoint.source: is missing"),
        ({"serve": {"lengths": "raged"}}, "serve.lengths: unknown word 'raged'; did you mean 'ragged'?"),
        ({"serve": {"lengths": {"buckets": {"count": 0}}}}, "serve.lengths.buckets: count: input should be greater"),
        ({"task": {"question_answering": {"n_best": 0}}}, "task.question_answering: n_best: input should be greater"),
        ({"data": {"train": [], "validation": ["a"]}}, "data.train: list should have at least 1 item"),
        ({"data": {"train": "a", "validation": ["a"]}}, "data.train: input should be a valid list, got 'a'"),
        ({"finetune": {"lr": 1}}, "finetune.lr: unknown key; allowed: lora"),
        ({"serve": {"max_batch_size": True}}, "serve.max_batch_size: input should be a valid integer, got True"),
    ],
)
def test_mistake_names_its_place_and_what_is_allowed(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as raised:
        load(write_recipe(tmp_path, **changes))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"a: [", b"- 1\n- 2\n", b"\xff\xfe", b""])
def test_what_is_no_recipe_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"recipe .*recipe\.yaml"):
        load(path)


def test_key_written_twice_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    path.write_text(path.read_text() + "name: again\n")
    with pytest.raises(InputError, match=r"key 'name' is written twice"):
        load(path)


def test_merge_may_be_overridden(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    text = path.read_text()
    assert "\n  max_batch_size: 8\n" in text.partition("serve:\n")[2]
    path.write_text(text.replace("serve:\n", "serve:\n  <<: {max_batch_size: 4, max_queue_delay_microseconds: 7}\n"))
    assert load(path).serve.max_batch_size == 8
    assert load(path).serve.max_queue_delay_microseconds == 7


def test_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "nothing.yaml")


@settings(deadline=None)
@given(
    key=st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=1, max_size=8),
    place=st.sampled_from(["", "serve", "gate"]),
)
def test_no_unknown_key_passes(tmp_path_factory: pytest.TempPathFactory, key: str, place: str) -> None:
    path = write_recipe(tmp_path_factory.mktemp("recipe"))
    data = yaml.safe_load(path.read_text())
    target = data[place] if place else data
    if key in {name for model in (RecipeText, ServeConfig, GateConfig) for name in model.model_fields}:
        return
    target[key] = 1
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match="unknown key"):
        load(path)


def test_layout_of_one_execution_is_refused_for_windows(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, task="question_answering", gate={"dataset": "q.json", "metric": "f1"})
    with pytest.raises(InputError, match=r"serve\.steps: .* may need several executions .* allowed: single, scripting"):
        load(recipe)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("tasks", ["Config", "METRICS", "MOST", "CALIBRATES_ON", "AUTO_CLASS", "ENCODER", "WINDOWS", "INPUTS",
                   "head", "load_data",
                   "encoder_settings", "postprocessor", "scorer", "agreement", "ensemble_inputs", "ensemble_outputs"]),
        ("training", ["Config", "METRIC", "load", "texts", "augmented", "check", "deciding", "as_served",
                      "model_settings", "features",
                      "outputs", "outputs_as_served", "losses", "distances", "answers", "judge", "chosen"]),
        ("graph", ["Config", "READS", "apply"]),
        ("passes", ["Config", "apply"]),
        ("engines", ["Config", "PACKAGES", "LAYOUTS", "FORMS", "INTEGERS", "SPARSE",
                     "refusal", "runs_here", "rungs", "build", "load",
                     "threads", "measured", "model_config", "versions"]),
        ("lengths", ["Config", "ATTENTION", "POSTPROCESSING_BATCHES", "export", "native", "as_padded", "engine_inputs",
                     "declare_outputs", "tokenizer_settings"]),
    ],
)  # fmt: skip
def test_every_plugin_has_the_names_of_its_kind(kind: str, names: list[str]) -> None:
    # How a task is trained is found by the task's word; the other files there are not of a task.
    for word in plugins.names("tasks" if kind == "training" else kind):
        module = plugins.find(kind, word, path="test")
        assert [name for name in names if not hasattr(module, name)] == []
        assert module.Config.model_config["extra"] == "forbid"
        assert module.__doc__


RECONSTRUCTED, AS_THEY_ARE = {"prune": {"ffn": 0.5}}, {"prune": {"ffn": 0.5, "reconstruct": False}}
ZEROS, FOR_INT8, RESTORED = (
    {"sparsify": {"share": 0.5}},
    {"distill": {"fake_quantize": 7}},
    {"restore": {"folder": "a"}},
)
LAYERS, WORDS = {"crop": {"layers": 1}}, {"crop": {"vocabulary": {}}}


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (
            [ZEROS, "distill"],
            "passes[1]: distill must not come behind sparsify (passes[0]): training makes other numbers",
        ),
        ([ZEROS, WORDS, FOR_INT8], "passes[2]: distill must not come behind sparsify (passes[0])"),
        ([ZEROS, RECONSTRUCTED], "passes[1]: prune must not come behind sparsify (passes[0]): what is taken out"),
        ([ZEROS, AS_THEY_ARE], "passes[1]: prune must not come behind sparsify"),
        ([ZEROS, LAYERS], "passes[1]: crop must not come behind sparsify (passes[0]): the share of zeros"),
        (
            ["distill", RESTORED],
            "passes[1]: restore must not come behind distill (passes[0]): what is restored was cut",
        ),
        ([WORDS, RESTORED], "passes[1]: restore must not come behind crop (passes[0])"),
        ([RESTORED, RESTORED], "passes[1]: restore must not come behind restore (passes[0])"),
        (
            [FOR_INT8, "distill"],
            "passes[1]: distill must not come behind distill (passes[0]): what was trained for INT8",
        ),
        ([FOR_INT8, RECONSTRUCTED], "passes[1]: prune must not come behind distill (passes[0]): the weights that are"),
    ],
)
def test_passes_in_an_order_that_makes_no_sense_are_refused(tmp_path: Path, passes: list[object], message: str) -> None:
    with pytest.raises(InputError) as raised:
        load(write_recipe(tmp_path, passes=passes))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "passes",
    [
        [LAYERS, RECONSTRUCTED, "distill", ZEROS],
        [RECONSTRUCTED, "distill", RECONSTRUCTED, LAYERS, "distill", FOR_INT8],
        [RESTORED, RECONSTRUCTED, "distill", ZEROS],
        [ZEROS, WORDS],
        [FOR_INT8, AS_THEY_ARE, FOR_INT8, ZEROS],
        [ZEROS, {"sparsify": {"pattern": "2:4"}}],
    ],
)
def test_passes_in_any_other_order_are_taken(tmp_path: Path, passes: list[object]) -> None:
    assert len(load(write_recipe(tmp_path, passes=passes)).passes) == len(passes)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"serve": {"dynamic_batching": False, "queue": {"priority_levels": 2}}},
            "serve: queue needs dynamic_batching: true, whose queue it is; leave one of them out",
        ),
        (
            {"engine": {"onnxruntime_gpu": {"provider": "cuda", "precision": "int8"}}},
            "engine.onnxruntime_gpu: precision: int8 is of provider tensorrt; take that, or precision fp16",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_told_without_the_others(
    tmp_path: Path, changes: dict[str, object], line: str
) -> None:
    with pytest.raises(InputError) as error:
        load(write_recipe(tmp_path, **changes))
    assert str(error.value).endswith(f".yaml: {line}")
