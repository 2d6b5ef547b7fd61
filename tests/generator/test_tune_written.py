"""The build that comes of a tuning, and the lines by which a recipe gives the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_builds import write_other_sources
from tritonclient.grpc import model_config_pb2 as pb
from tritonpress_generator import builds, switching
from tritonpress_generator import recipe as recipes
from tritonpress_generator.build import build
from tritonpress_generator.errors import InputError
from tritonpress_generator.tune import knobs as turning
from tritonpress_generator.tune import written
from tritonpress_generator.tune.climb import Point
from tritonpress_generator.tune.knobs import Knob
from tritonpress_generator.tune.session import Found
from tritonpress_generator.verify import verify
from tunings import LIMIT_MS, at, of_steps, step


@pytest.fixture
def tuned(tiny_repository: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    shutil.copytree(tiny_repository, folder)
    return folder


def found_in(repository: Path) -> tuple[str, Found]:
    """Returns the only workload of a repository, and what a tuning that turns every knob has found."""
    (name,) = (name for name in builds.workloads(repository) if builds.owner(repository, name) == name)
    manifest = builds.read_manifest(repository, name)
    configs = turning.read_configs(repository, manifest, name)
    knobs = turning.knobs(
        configs,
        manifest["steps"],
        workload=name,
        engine=manifest["engine"],
        cores=2,
        p99_ms=LIMIT_MS,
        cache=True,
    )
    best = Point({knob.key: knob.values[-1] for knob in knobs}, at(190, 93), None)
    changed = turning.changed(configs, knobs, best.setting)
    result = Found(LIMIT_MS, "L", knobs, None, best, [(None, best.kept)] * 3, [], [], True, 7.5)
    return name, replace(result, manifests={name: manifest}, configs=configs | changed, changed=frozenset(changed))


def test_writes_a_build_beside_the_one_that_serves_which_the_recipe_would_write_too(
    tuned: Path, tiny_sources: Path, tmp_path: Path
) -> None:
    name, result = found_in(tuned)
    served = (tuned / name / "config.pbtxt").read_bytes()
    (new,) = written.place(tuned, result, {"p99_ms": LIMIT_MS}).values()
    assert (tuned / name / "config.pbtxt").read_bytes() == served
    assert new in {row["build"] for row in builds.listing(tuned, name)}
    switching.promote(tuned, name, new, keep=1)
    assert verify(tuned)
    after = turning.read_configs(tuned, builds.read_manifest(tuned, name), name)
    assert {
        knob.key: turning.KINDS[knob.kind].read(after[knob.models[-1]]) for knob in result.knobs if knob.kind == "cache"
    } == {f"{name}.ensemble.cache": (1,)}
    # What the lines say, `build` writes.
    recipe = yaml.safe_load((tiny_sources / "recipe.yaml").read_text(encoding="utf-8"))
    recipe |= yaml.safe_load("\n".join(written.recipe_lines(written.entries(result)[name])))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | {"folder": str(tiny_sources)}), encoding="utf-8")
    again = build(path, tmp_path / "again").manifest
    assert again["build"] == new


def test_places_nothing_where_another_build_serves_by_now(tuned: Path, tiny_sources: Path, tmp_path: Path) -> None:
    name, result = found_in(tuned)
    before = builds.served(tuned, name)
    build(write_other_sources(tiny_sources, tmp_path / "other"), tuned)
    there = builds.listing(tuned, name)
    with pytest.raises(InputError, match=f"must serve build {before}, which was tuned, .* no build was placed"):
        written.place(tuned, result, {})
    assert builds.listing(tuned, name) == there
    switching.promote(tuned, name, before)
    assert [*written.place(tuned, result, {})] == [name]


def test_what_can_be_run_of_a_build_can_be_run_of_the_tuned_one(tuned: Path) -> None:
    """As the script that builds a plan of TensorRT."""
    name, result = found_in(tuned)
    (tuned / result.manifests[name]["steps"]["engine"] / "1" / "model.onnx").chmod(0o755)
    (new,) = written.place(tuned, result, {}).values()
    switching.promote(tuned, name, new, keep=1)
    placed = tuned / builds.read_manifest(tuned, name)["steps"]["engine"] / "1" / "model.onnx"
    assert placed.stat().st_mode & 0o777 == 0o755


def manifest_of(engine: object, **more: Any) -> dict[str, Any]:
    recipe = {
        "name": "w",
        "task": "classification",
        "checkpoint": {"source": "./checkpoint"},
        "gate": {"dataset": "texts.tsv", "metric": "accuracy"},
        "engine": engine,
        "serve": {"max_batch_size": 16, "queue": {"max_queue_size": 64}},
    }
    return {"workload": "w", "recipe": yaml.safe_dump(recipe), **more}


def tuned_recipe(manifest: dict[str, Any], configs: dict[str, pb.ModelConfig], knobs: list[Knob]) -> recipes.Recipe:
    """Returns the recipe whose lines were replaced by those that are printed."""
    lines = written.recipe_lines(written.recipe_entries(manifest, knobs, configs))
    recipe = yaml.safe_load(manifest["recipe"]) | yaml.safe_load("\n".join(lines))
    return recipes.of(recipe, path=Path("recipe.yaml"))


def test_lines_keep_what_the_recipe_says_of_the_engine() -> None:
    settings = {
        "precision": "bf16",
        "release": "24.10",
        "optimization_profiles": [{"batch": [1, 8, 16], "length": [1, 32, 256]}],
    }
    configs = {f"w_{role}": step(role, gpu=role == "engine") for role in ("tokenizer", "engine", "postprocessing")}
    configs["w"] = pb.ModelConfig(name="w", platform="ensemble", max_batch_size=16)
    steps = {name.removeprefix("w_"): name for name in configs if name != "w"}
    knobs = turning.knobs(configs, steps, workload="w", engine="tensorrt", cores=4, p99_ms=LIMIT_MS, preferred=[8, 16])
    setting = {knob.key: knob.values[-1] for knob in knobs}
    turned = configs | turning.changed(configs, knobs, setting)
    manifest = manifest_of({"tensorrt": settings})
    recipe = tuned_recipe(manifest, turned, knobs)
    before = recipes.of(yaml.safe_load(manifest["recipe"]), path=Path("recipe.yaml"))
    assert recipe.engine.config == before.engine.config.model_copy(update={"instances": 4})
    assert recipe.serve.queue.max_queue_size == 64
    assert recipe.serve.tokenizer_instances == setting["w.tokenizer.instances"][0]
    # Sizes above the batch limit are no sizes.
    assert (recipe.serve.max_batch_size, recipe.serve.preferred_batch_size) == (8, [8])


def test_lines_keep_what_a_tuning_before_has_changed() -> None:
    configs, knobs = of_steps("model")
    delay = [knob for knob in knobs if knob.kind == "delay"]
    before = {"serve": {"max_batch_size": 8, "response_cache": True}}
    recipe = tuned_recipe(manifest_of("onnxruntime", tuned={"recipe": before}), configs, delay)
    assert (recipe.serve.max_batch_size, recipe.serve.response_cache) == (8, True)
    for recipe_text in ("[", "- a", 3):
        with pytest.raises(InputError, match="w: the recipe in its manifest cannot be read"):
            written.recipe_entries({"workload": "w", "recipe": recipe_text}, knobs, configs)
