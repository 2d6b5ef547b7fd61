"""Two steps: one in Python that tokenises and post-processes, and asks the engine in its own backend of Triton's.

The step calls the engine by business-logic scripting, as often as a request needs: however many windows its texts have,
they are divided into executions. The engine is sized and batched by itself, and runs in NVIDIA's native backend where
the server has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator.layouts import Parts, ensemble, ensemble_config, public_names
from tritonpress_generator.layouts.single import text_to_answer
from tritonpress_generator.recipe_text import QueueConfig
from tritonpress_generator.repository import Step

NATIVE = True
WINDOWS = True
_STEPS_AN_ENGINE = 2
"""Python steps for each instance of the engine: one prepares while the other waits."""


def steps(parts: Parts) -> list[Step]:
    """Returns the engine and the step that asks it."""
    # Requests wait, by priority, for the step that they reach first; what it asks the engine must not be refused there.
    engine = ensemble.engine(_with(parts, queue=QueueConfig()))
    parts = replace(parts, encoding=ensemble.divided(parts))
    instances = _STEPS_AN_ENGINE * sum(group.count for group in engine.config.instance_group)
    step = text_to_answer(_with(parts, rate_limiter=None), "scripting", instances=instances)
    step.config.parameters["outputs"].string_value = " ".join(parts.signature.outputs)
    # No warm-up: the engine may be loaded after it.
    return [engine, replace(step, calls=("engine",))]


def _with(parts: Parts, **settings: object) -> Parts:
    """Returns the parts with other settings of `serve`."""
    return replace(parts, recipe=replace(parts.recipe, serve=parts.recipe.serve.model_copy(update=settings)))


def config(parts: Parts, names: Mapping[str, str]) -> pb.ModelConfig:
    """Returns the public model's config."""
    public, answers = public_names(parts.recipe)
    return ensemble_config(parts.recipe, names, [("model", public, answers)])
