"""Requests of all lengths packed behind one another: one execution, no padding.

Triton concatenates one-dimensional ragged inputs, and scatters an output by the shape of an input: values of tokens by
the tokens', one value a text by the lengths'. An answer of rows has no input of its shape, so that the tokenizer sends
one of as many INT8 elements, which the graph does not read.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator import ragged
from tritonpress_generator.errors import InputError
from tritonpress_generator.recipe import ServeConfig, Settings
from tritonpress_generator.signature import Signature

ATTENTION = ragged.ATTENTION
POSTPROCESSING_BATCHES = False
"""An answer is flat, `[1, texts * width]` or `[1, tokens]`, beside `[texts, 1]` public inputs: Triton batches only what
agrees."""

export = ragged.export
native = ragged.packed
as_padded = ragged.as_padded


class Config(Settings):
    max_tokens: int | None = Field(default=None, ge=8)
    """The most tokens of an execution. Triton counts requests, so that each of the `serve.max_batch_size` requests may
    have its share of it, and one with more is refused; default: no limit but what a batch of the longest texts has.
    An INT8 execution of MiniLM-L6 (width 384) was measured to take 24 kB a token."""


def engine_inputs(signature: Signature) -> list[pb.ModelInput]:
    """Returns the inputs of the engine's config."""
    types = dict.fromkeys(ragged.inputs(signature), pb.TYPE_INT64)
    types |= dict.fromkeys(ragged.row_elements(signature), pb.TYPE_INT8)
    return [
        pb.ModelInput(name=name, data_type=dtype, dims=[-1], allow_ragged_batch=True) for name, dtype in types.items()
    ]


def declare_outputs(config: pb.ModelConfig, signature: Signature) -> None:
    """Adds the outputs to the engine's config."""
    for name, source in ragged.source_inputs(signature).items():
        config.output.append(pb.ModelOutput(name=name, data_type=pb.TYPE_FP32, dims=[-1]))
        config.batch_output.append(
            pb.BatchOutput(
                target_name=[name],
                kind=pb.BatchOutput.BATCH_SCATTER_WITH_INPUT_SHAPE,
                source_input=[source],
            )
        )


def tokenizer_settings(
    config: Config, serve: ServeConfig, signature: Signature, lengths: Sequence[int]
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
        "row_elements": ragged.row_elements(signature),
        "max_tokens": None if config.max_tokens is None else config.max_tokens // serve.max_batch_size,
    }
