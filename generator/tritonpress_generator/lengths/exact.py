"""Every request at its own length, padded only beside the other texts of a client's batch.

Triton batches requests of one shape, so that requests of different lengths run one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator import export as padded
from tritonpress_generator.infer import Array, Infer
from tritonpress_generator.recipe_text import ServeConfig, Settings
from tritonpress_generator.signature import Signature

ATTENTION = padded.ATTENTION
INTEGERS = {"int64": pb.TYPE_INT64, "int32": pb.TYPE_INT32}
POSTPROCESSING_BATCHES = True
"""Whether an engine's answer has a row a text, so that Triton may batch what reads it."""

export = padded.export


class Config(Settings):
    """Has no settings."""


def native(feed: Mapping[str, Array], signature: Signature) -> dict[str, Array]:
    """Returns a padded batch as the graph's inputs."""
    return {name: feed[name] for name in signature.inputs}


def as_padded(infer: Infer, signature: Signature) -> Infer:
    """Returns the graph's `infer` as one that takes a padded batch."""
    return infer


def engine_inputs(signature: Signature, integers: str) -> list[pb.ModelInput]:
    """Returns the inputs of the engine's config; `integers` is their type, as NumPy has it."""
    return [pb.ModelInput(name=name, data_type=INTEGERS[integers], dims=[-1]) for name in signature.inputs]


def declare_outputs(config: pb.ModelConfig, signature: Signature) -> None:
    """Adds the outputs to the engine's config."""
    for name, output in signature.outputs.items():
        config.output.append(pb.ModelOutput(name=name, data_type=pb.TYPE_FP32, dims=[output.width or -1]))


def tokenizer_settings(
    config: Config, serve: ServeConfig, signature: Signature, lengths: Sequence[int], encoder: Any
) -> dict[str, object]:
    """Returns what the tokenizer's step must know."""
    return {}
