"""Three steps: tokenizer and post-processing in Python, the engine in its own backend of Triton's.

Each is sized and batched by itself, and the engine runs in NVIDIA's native backend where the server has it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator.layouts import Parts, copy_code, ensemble_config, public_names, python_config
from tritonpress_generator.queueing import add_priorities, add_queue, instances_of
from tritonpress_generator.repository import Step
from tritonpress_generator.steps.tokenizer.served import save

NATIVE = True
WINDOWS = False
"""Whether a text may have several sequences: here a request is one execution of the engine, which cannot be divided."""
_WARM_UP_LENGTHS = (16, 64)


def steps(parts: Parts) -> list[Step]:
    """Returns the three steps, in the order of the flow."""
    return [_tokenizer(parts), engine(parts), _postprocessing(parts)]


def config(parts: Parts, names: Mapping[str, str]) -> pb.ModelConfig:
    """Returns the public model's config."""
    public, answers = public_names(parts.recipe)
    tokens = [tensor.name for tensor in parts.engine_inputs()]
    flow = [
        ("tokenizer", public, tokens),
        ("engine", tokens, list(parts.signature.outputs)),
        ("postprocessing", [*parts.signature.outputs, *public], answers),
    ]
    return ensemble_config(parts.recipe, names, flow)


def _tokenizer(parts: Parts) -> Step:
    """Returns the step from the public text to the engine's inputs."""
    recipe = parts.recipe
    encoding = divided(parts)

    def write(version_dir: Path) -> None:
        copy_code(("tokenizer",), version_dir)
        save(version_dir, parts.tokenizer, encoding)

    config = python_config(recipe, instances=instances_of(recipe.serve, recipe.serve.tokenizer_instances))
    config.dynamic_batching.SetInParent()
    add_priorities(config, recipe.serve)
    config.input.extend(recipe.task.module.ensemble_inputs())
    config.output.extend(
        pb.ModelOutput(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        for tensor in parts.engine_inputs()
    )
    return Step("tokenizer", config, write)


def divided(parts: Parts) -> dict[str, Any]:
    """Returns what the tokenizer must know, for a request of an engine whose executions have several."""
    batching = dict(parts.encoding["batching"])
    if batching.get("max_tokens") is not None:
        # Triton counts requests, of which an execution may have this many.
        batching["max_tokens"] //= parts.recipe.serve.max_batch_size
    return {**parts.encoding, "batching": batching}


def engine(parts: Parts) -> Step:
    """Returns the step from token ids to the model's outputs, in the config that Triton's own backend takes."""
    recipe, lengths, signature = parts.recipe, parts.lengths.module, parts.signature
    stage = recipe.engine
    config: pb.ModelConfig = stage.module.model_config(stage.config, parts.asked)
    config.max_batch_size = recipe.serve.max_batch_size
    config.input.extend(parts.engine_inputs())
    lengths.declare_outputs(config, signature)
    types = {tensor.name: tensor.data_type for tensor in config.input}
    add_queue(config, recipe.serve)
    config.version_policy.latest.num_versions = 1
    data: dict[str, bytes] = {}
    for length in parts.asked.borders or [min(length, recipe.serve.max_length) for length in _WARM_UP_LENGTHS]:
        sample = config.model_warmup.add(name=f"{length} tokens", batch_size=1, count=2)
        # Real tokens: a mask of zeros would be a text of no tokens, which no request has.
        text = dict.fromkeys(signature.inputs, np.ones((1, length), stage.module.INTEGERS))
        for name, tensor in lengths.native(text, signature).items():
            file = f"{name}_{length}"
            sample.inputs[name].data_type = types[name]
            sample.inputs[name].dims.append(tensor.size)
            sample.inputs[name].input_data_file = file
            data[file] = tensor.tobytes()

    def write(version_dir: Path) -> None:
        shutil.copytree(parts.engine, version_dir)

    return Step("engine", config, write, data)


def _postprocessing(parts: Parts) -> Step:
    """Returns the step from the model's outputs, and the public text, to the public answer."""
    task = parts.recipe.task

    def write(version_dir: Path) -> None:
        copy_code((task.word, "postprocessing"), version_dir)
        parts.write_postprocessing(version_dir)

    batches = parts.lengths.module.POSTPROCESSING_BATCHES
    config = python_config(parts.recipe, instances=instances_of(parts.recipe.serve, 1) if batches else 1)
    gives = pb.ModelConfig()
    parts.lengths.module.declare_outputs(gives, parts.signature)
    config.input.extend(pb.ModelInput(name=o.name, data_type=o.data_type, dims=o.dims) for o in gives.output)
    config.input.extend(task.module.ensemble_inputs())
    config.output.extend(task.module.ensemble_outputs(task.config))
    config.parameters["outputs"].string_value = " ".join(parts.signature.outputs)
    config.parameters["texts"].string_value = " ".join(task.module.INPUTS)
    if batches:
        config.dynamic_batching.SetInParent()
        add_priorities(config, parts.recipe.serve)
    else:
        config.max_batch_size = 0
        for tensor in (*config.input, *config.output):
            tensor.dims.insert(0, -1)
    return Step("postprocessing", config, write)
