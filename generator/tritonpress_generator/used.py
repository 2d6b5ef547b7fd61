"""Which models others use: the steps that ensembles name, and those that steps call by themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tritonclient.grpc import model_config_pb2 as pb

HASH_LENGTH = 12


def own_steps(name: str) -> re.Pattern[str]:
    """Returns what the names of the steps of the workload `name` look like."""
    return re.compile(rf"{re.escape(name)}_(model|tokenizer|engine|postprocessing)_[0-9a-f]{{{HASH_LENGTH}}}")


def used(configs: Mapping[str, pb.ModelConfig]) -> set[str]:
    """Returns the steps that the ensembles among `configs`, by model, name, and what these steps call.

    The names that steps have in their parameters for other ends are among them, which does no harm.
    """
    named = {step.model_name for config in configs.values() for step in config.ensemble_scheduling.step}
    return named.union(*(calls(configs[step]) for step in named if step in configs))


def calls(config: pb.ModelConfig) -> set[str]:
    """Returns the models that a step asks by itself, whose names are among its parameters, and what else is there."""
    return {parameter.string_value for parameter in config.parameters.values()}
