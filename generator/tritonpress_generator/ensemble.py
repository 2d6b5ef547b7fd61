"""The steps and the ensemble of a workload: tokenizer, engine, post-processing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator.recipe import Recipe
from tritonpress_generator.repository import Step

_STEPS = Path(__file__).parent / "steps"
_WARM_UP_LENGTHS = (16, 64)


def tokenizer_step(recipe: Recipe, tokenizer: Tokenizer) -> Step:
    """Returns the step from the public text to `input_ids` and `attention_mask`."""
    serve = recipe.serve
    settings = {
        "max_length": serve.max_length,
        "pad_to_multiple_of": serve.pad_to_multiple_of,
        "max_bytes": recipe.task.config.max_query_bytes,
    }

    def write(version_dir: Path) -> None:
        _copy_code("tokenizer", version_dir)
        tokenizer.save(str(version_dir / "tokenizer.json"), pretty=False)
        (version_dir / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    config = _python_config(recipe, instances=serve.tokenizer_instances)
    config.input.extend(recipe.task.module.ensemble_inputs())
    config.output.extend(
        pb.ModelOutput(name=name, data_type=pb.TYPE_INT64, dims=[-1]) for name in ("input_ids", "attention_mask")
    )
    return Step("tokenizer", config, write)


def engine_step(recipe: Recipe, model: onnx.ModelProto, outputs: dict[str, int]) -> Step:
    """Returns the step from token ids to the model's outputs, in the config that Triton's own backend takes."""
    engine = recipe.engine
    config: pb.ModelConfig = engine.module.model_config(engine.config)
    config.max_batch_size = recipe.serve.max_batch_size
    for name in ("input_ids", "attention_mask"):
        config.input.append(pb.ModelInput(name=name, data_type=pb.TYPE_INT64, dims=[-1]))
    for name, width in outputs.items():
        config.output.append(pb.ModelOutput(name=name, data_type=pb.TYPE_FP32, dims=[width]))
    config.dynamic_batching.max_queue_delay_microseconds = recipe.serve.max_queue_delay_microseconds
    config.version_policy.latest.num_versions = 1
    data: dict[str, bytes] = {}
    for length in _WARM_UP_LENGTHS:
        length = min(length, recipe.serve.max_length)  # noqa: PLW2901
        sample = config.model_warmup.add(name=f"{length} tokens", batch_size=1, count=2)
        for name in ("input_ids", "attention_mask"):
            file = f"{name}_{length}"
            sample.inputs[name].data_type = pb.TYPE_INT64
            sample.inputs[name].dims.append(length)
            sample.inputs[name].input_data_file = file
            # Real tokens: a mask of zeros would be a text of no tokens, which no request has.
            data[file] = np.ones(length, np.int64).tobytes()

    def write(version_dir: Path) -> None:
        engine.module.build(model, version_dir)

    return Step("engine", config, write, data)


def postprocessing_step(recipe: Recipe, outputs: dict[str, int], write_data: Callable[[Path], None]) -> Step:
    """Returns the step from the model's outputs, and the public text, to the public answer."""
    task = recipe.task

    def write(version_dir: Path) -> None:
        _copy_code(task.word, version_dir)
        write_data(version_dir)

    config = _python_config(recipe, instances=1)
    for name, width in outputs.items():
        config.input.append(pb.ModelInput(name=name, data_type=pb.TYPE_FP32, dims=[width]))
    config.input.extend(task.module.ensemble_inputs())
    config.output.extend(task.module.ensemble_outputs(task.config))
    return Step("postprocessing", config, write)


def ensemble_config(recipe: Recipe, outputs: dict[str, int]) -> Callable[[dict[str, str]], pb.ModelConfig]:
    """Returns what gives the ensemble's config once the steps' names are known."""
    task = recipe.task

    def config(names: dict[str, str]) -> pb.ModelConfig:
        public = [tensor.name for tensor in task.module.ensemble_inputs()]
        answers = [tensor.name for tensor in task.module.ensemble_outputs(task.config)]
        tokens = ["input_ids", "attention_mask"]
        flow = [
            ("tokenizer", public, tokens),
            ("engine", tokens, list(outputs)),
            ("postprocessing", [*outputs, *public], answers),
        ]
        steps = [
            pb.ModelEnsembling.Step(
                model_name=names[role],
                model_version=-1,
                input_map={name: name for name in reads},
                output_map={name: name for name in gives},
            )
            for role, reads, gives in flow
        ]
        return pb.ModelConfig(
            platform="ensemble",
            max_batch_size=recipe.serve.max_batch_size,
            input=task.module.ensemble_inputs(),
            output=task.module.ensemble_outputs(task.config),
            ensemble_scheduling=pb.ModelEnsembling(step=steps),
        )

    return config


def _python_config(recipe: Recipe, *, instances: int) -> pb.ModelConfig:
    config = pb.ModelConfig(
        backend="python",
        max_batch_size=recipe.serve.max_batch_size,
        instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_CPU, count=instances)],
    )
    config.dynamic_batching.SetInParent()
    config.version_policy.latest.num_versions = 1
    return config


def _copy_code(step: str, version_dir: Path) -> None:
    version_dir.mkdir(parents=True, exist_ok=True)
    for path in sorted((_STEPS / step).glob("*.py")):
        if path.name != "__init__.py":
            shutil.copyfile(path, version_dir / path.name)
