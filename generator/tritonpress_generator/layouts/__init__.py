"""How a workload's work is divided into Triton models; one file an alternative.

Whatever the division, the public model is an ensemble, whose config is the one switch between builds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator.engines import Asked
from tritonpress_generator.recipe import Recipe, Stage
from tritonpress_generator.signature import Signature

_STEPS = Path(__file__).parents[1] / "steps"


@dataclass(frozen=True)
class Parts:
    """What the steps are made of."""

    recipe: Recipe
    lengths: Stage
    """The form that the sequences have at the engine."""
    tokenizer: Tokenizer
    encoding: Mapping[str, Any]
    """What the tokenizer must know, for an execution of the engine (`steps/tokenizer/served.py`)."""
    engine: Path
    """The folder in which the engine was built."""
    asked: Asked
    write_postprocessing: Callable[[Path], None]
    """Writes the data of the post-processing into a version folder."""

    @property
    def signature(self) -> Signature:
        """What the engine reads and gives."""
        return self.asked.signature

    def engine_inputs(self) -> list[pb.ModelInput]:
        """Returns the inputs of the engine's config."""
        inputs: list[pb.ModelInput] = self.lengths.module.engine_inputs(
            self.signature, self.recipe.engine.module.INTEGERS
        )
        return inputs


def copy_code(steps: Sequence[str], version_dir: Path) -> None:
    """Copies Triton's `model.py` of the last of `steps` into `version_dir`, and the modules of all into its `steps`."""
    modules = version_dir / "steps"
    modules.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_STEPS / steps[-1] / "model.py", version_dir / "model.py")
    shutil.copyfile(_STEPS / "__init__.py", modules / "__init__.py")
    for step in steps:
        for path in sorted((_STEPS / step).glob("*.py")):
            if path.name not in {"__init__.py", "model.py"}:
                shutil.copyfile(path, modules / path.name)


def python_config(recipe: Recipe, *, instances: int) -> pb.ModelConfig:
    """Returns the config of a step in Python, without inputs and outputs."""
    config = pb.ModelConfig(
        backend="python",
        max_batch_size=recipe.serve.max_batch_size,
        instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_CPU, count=instances)],
    )
    config.version_policy.latest.num_versions = 1
    return config


def ensemble_config(
    recipe: Recipe, names: Mapping[str, str], flow: Sequence[tuple[str, Sequence[str], Sequence[str]]]
) -> pb.ModelConfig:
    """Returns the public model's config.

    Args:
        recipe: The recipe.
        names: Of the steps, by role.
        flow: Each step's role, what it reads and what it gives.
    """
    task = recipe.task
    steps = [
        pb.ModelEnsembling.Step(
            model_name=names[role],
            model_version=-1,
            input_map={name: name for name in reads},
            output_map={name: name for name in gives},
        )
        for role, reads, gives in flow
    ]
    config = pb.ModelConfig(
        platform="ensemble",
        max_batch_size=recipe.serve.max_batch_size,
        input=task.module.ensemble_inputs(),
        output=task.module.ensemble_outputs(task.config),
        ensemble_scheduling=pb.ModelEnsembling(step=steps),
    )
    if recipe.serve.response_cache:
        # Of whole answers: a hit asks no step.
        config.response_cache.enable = True
    return config


def public_names(recipe: Recipe) -> tuple[list[str], list[str]]:
    """Returns the names of the public inputs and outputs."""
    task = recipe.task
    inputs = [tensor.name for tensor in task.module.ensemble_inputs()]
    return inputs, [tensor.name for tensor in task.module.ensemble_outputs(task.config)]
