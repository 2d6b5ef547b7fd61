"""Requests of all lengths packed behind one another: one execution, no padding.

Triton concatenates one-dimensional ragged inputs, and scatters an output by the shape of an input. An answer of rows
has no input of its shape, so that the tokenizer sends one of as many INT8 elements, which the graph does not read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator import ragged
from tritonpress_generator.errors import InputError
from tritonpress_generator.recipe import ServeConfig, Settings

ATTENTION = ragged.ATTENTION
POSTPROCESSING_BATCHES = False
"""An answer is flat, `[1, texts * width]`, beside `[texts, 1]` public inputs: Triton batches only what agrees."""

export = ragged.export
native = ragged.packed
as_padded = ragged.as_padded


class Config(Settings):
    max_tokens: int | None = Field(default=None, ge=8)
    """The most tokens of an execution. Triton counts requests, so that each of the `serve.max_batch_size` requests may
    have its share of it, and one with more is refused; default: no limit but what a batch of the longest texts has.
    An INT8 execution of MiniLM-L6 (width 384) was measured to take 24 kB a token."""


def engine_inputs(outputs: Mapping[str, int]) -> list[pb.ModelInput]:
    """Returns the inputs of the engine's config."""
    types = dict.fromkeys(ragged.INPUTS, pb.TYPE_INT64) | dict.fromkeys(map(ragged.elements, outputs), pb.TYPE_INT8)
    return [
        pb.ModelInput(name=name, data_type=dtype, dims=[-1], allow_ragged_batch=True) for name, dtype in types.items()
    ]


def declare_outputs(config: pb.ModelConfig, outputs: Mapping[str, int]) -> None:
    """Adds the outputs to the engine's config."""
    for name in outputs:
        config.output.append(pb.ModelOutput(name=name, data_type=pb.TYPE_FP32, dims=[-1]))
        config.batch_output.append(
            pb.BatchOutput(
                target_name=[name],
                kind=pb.BatchOutput.BATCH_SCATTER_WITH_INPUT_SHAPE,
                source_input=[ragged.elements(name)],
            )
        )


def tokenizer_settings(
    config: Config, serve: ServeConfig, outputs: Mapping[str, int], lengths: Sequence[int]
) -> dict[str, object]:
    """Returns what the tokenizer's step must know.

    Raises:
        InputError: The limit would refuse the longest text that is served.
    """
    least = serve.max_batch_size * serve.max_length
    if config.max_tokens is not None and config.max_tokens < least:
        raise InputError(
            f"serve.lengths.ragged: max_tokens must be at least {least} (serve.max_batch_size requests of one text of "
            f"serve.max_length), got {config.max_tokens}; raise it, or lower one of these"
        )
    return {
        "row_elements": {ragged.elements(name): width for name, width in outputs.items()},
        "max_tokens": None if config.max_tokens is None else config.max_tokens // serve.max_batch_size,
    }
