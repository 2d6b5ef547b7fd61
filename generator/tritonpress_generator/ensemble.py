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
from tritonpress_generator.signature import Signature

_STEPS = Path(__file__).parent / "steps"
_WARM_UP_LENGTHS = (16, 64)


def tokenizer_step(recipe: Recipe, tokenizer: Tokenizer, forms: dict[str, object], signature: Signature) -> Step:
    """Returns the step from the public text to the engine's inputs, in the form that `forms` settles."""
    serve = recipe.serve
    settings = {
        "max_length": serve.max_length,
        "max_bytes": recipe.task.config.max_query_bytes,
    } | forms

    def write(version_dir: Path) -> None:
        _copy_code("tokenizer", version_dir)
        tokenizer.save(str(version_dir / "tokenizer.json"), pretty=False)
        (version_dir / "settings.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    config = _python_config(recipe, instances=serve.tokenizer_instances)
    config.input.extend(recipe.task.module.ensemble_inputs())
    config.output.extend(
        pb.ModelOutput(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        for tensor in recipe.lengths.module.engine_inputs(signature)
    )
    return Step("tokenizer", config, write)


def engine_step(recipe: Recipe, model: onnx.ModelProto, signature: Signature) -> Step:
    """Returns the step from token ids to the model's outputs, in the config that Triton's own backend takes."""
    engine = recipe.engine
    config: pb.ModelConfig = engine.module.model_config(engine.config)
    config.max_batch_size = recipe.serve.max_batch_size
    config.input.extend(recipe.lengths.module.engine_inputs(signature))
    recipe.lengths.module.declare_outputs(config, signature)
    types = {tensor.name: tensor.data_type for tensor in config.input}
    config.dynamic_batching.max_queue_delay_microseconds = recipe.serve.max_queue_delay_microseconds
    config.version_policy.latest.num_versions = 1
    data: dict[str, bytes] = {}
    for length in _WARM_UP_LENGTHS:
        length = min(length, recipe.serve.max_length)  # noqa: PLW2901
        sample = config.model_warmup.add(name=f"{length} tokens", batch_size=1, count=2)
        # Real tokens: a mask of zeros would be a text of no tokens, which no request has.
        text = dict.fromkeys(signature.inputs, np.ones((1, length), np.int64))
        for name, tensor in recipe.lengths.module.native(text, signature).items():
            file = f"{name}_{length}"
            sample.inputs[name].data_type = types[name]
            sample.inputs[name].dims.append(tensor.size)
            sample.inputs[name].input_data_file = file
            data[file] = tensor.tobytes()

    def write(version_dir: Path) -> None:
        engine.module.build(model, version_dir)

    return Step("engine", config, write, data)


def postprocessing_step(recipe: Recipe, signature: Signature, write_data: Callable[[Path], None]) -> Step:
    """Returns the step from the model's outputs, and the public text, to the public answer."""
    task = recipe.task

    def write(version_dir: Path) -> None:
        _copy_code(task.word, version_dir)
        write_data(version_dir)

    config = _python_config(recipe, instances=1)
    engine = pb.ModelConfig()
    recipe.lengths.module.declare_outputs(engine, signature)
    config.input.extend(pb.ModelInput(name=o.name, data_type=o.data_type, dims=o.dims) for o in engine.output)
    config.input.extend(task.module.ensemble_inputs())
    config.output.extend(task.module.ensemble_outputs(task.config))
    if not recipe.lengths.module.POSTPROCESSING_BATCHES:
        config.max_batch_size = 0
        config.ClearField("dynamic_batching")
        for tensor in (*config.input, *config.output):
            tensor.dims.insert(0, -1)
    return Step("postprocessing", config, write)


def ensemble_config(recipe: Recipe, signature: Signature) -> Callable[[dict[str, str]], pb.ModelConfig]:
    """Returns what gives the ensemble's config once the steps' names are known."""
    task = recipe.task

    def config(names: dict[str, str]) -> pb.ModelConfig:
        public = [tensor.name for tensor in task.module.ensemble_inputs()]
        answers = [tensor.name for tensor in task.module.ensemble_outputs(task.config)]
        tokens = [tensor.name for tensor in recipe.lengths.module.engine_inputs(signature)]
        flow = [
            ("tokenizer", public, tokens),
            ("engine", tokens, list(signature.outputs)),
            ("postprocessing", [*signature.outputs, *public], answers),
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
