"""One step in Python: tokenizer, engine and post-processing in one process, without a hop between them.

Each hop through Triton's Python backend costs about as much as a short text in the engine. Production runs the engine
with the ONNX Runtime of its Python, at the version that was gated here (`requirements.txt` beside the model), and not
with the one that is built into NVIDIA's image.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator.layouts import Parts, copy_code, ensemble_config, public_names, python_config
from tritonpress_generator.queueing import add_queue
from tritonpress_generator.repository import Step
from tritonpress_generator.steps.tokenizer.served import save

NATIVE = False
WINDOWS = True
_WARM_UP_TEXT = b"warm-up"


def steps(parts: Parts) -> list[Step]:
    """Returns the one step."""
    engine = parts.recipe.engine
    engine_config: pb.ModelConfig = engine.module.model_config(engine.config, parts.asked)
    instances = sum(group.count for group in engine_config.instance_group)
    step = text_to_answer(parts, engine.word, instances=instances, packages=engine.module.PACKAGES)
    for key, parameter in engine_config.parameters.items():
        step.config.parameters[key].CopyFrom(parameter)
    sample = step.config.model_warmup.add(name="text", batch_size=1, count=2)
    for tensor in step.config.input:
        sample.inputs[tensor.name].CopyFrom(
            pb.ModelWarmup.Input(data_type=tensor.data_type, dims=[1], input_data_file=tensor.name)
        )
    text = len(_WARM_UP_TEXT).to_bytes(4, "little") + _WARM_UP_TEXT

    def write(version_dir: Path) -> None:
        step.write(version_dir)
        shutil.copytree(parts.engine, version_dir, dirs_exist_ok=True)

    return [replace(step, write=write, warm_up={tensor.name: text for tensor in step.config.input})]


def text_to_answer(parts: Parts, engine: str, *, instances: int, packages: Sequence[str] = ()) -> Step:
    """Returns the step from the public text to the public answer.

    Args:
        parts: What it is made of.
        engine: The folder of `steps` whose `Engine` it asks.
        instances: Processes.
        packages: What they need beside `numpy` and `tokenizers`.
    """
    recipe = parts.recipe
    task = recipe.task

    def write(version_dir: Path) -> None:
        copy_code(("tokenizer", task.word, engine, "single"), version_dir)
        save(version_dir, parts.tokenizer, parts.encoding)
        lines = "".join(f"{name}=={version(name)}\n" for name in sorted({"numpy", "tokenizers", *packages}))
        (version_dir / "requirements.txt").write_text(lines, encoding="utf-8")
        parts.write_postprocessing(version_dir)

    config = python_config(recipe, instances=instances)
    add_queue(config, recipe.serve)
    config.input.extend(task.module.ensemble_inputs())
    config.output.extend(task.module.ensemble_outputs(task.config))
    return Step("model", config, write)


def config(parts: Parts, names: Mapping[str, str]) -> pb.ModelConfig:
    """Returns the public model's config."""
    public, answers = public_names(parts.recipe)
    return ensemble_config(parts.recipe, names, [("model", public, answers)])
