"""Requests of all lengths packed behind one another: one execution, no padding.

Triton concatenates one-dimensional ragged inputs, and scatters an output by an input: the output's dynamic dimension is
that of the input, so that values of tokens come back by the tokens, and rows of texts by the lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field
from tritonclient.grpc import model_config_pb2 as pb

from tritonpress_generator import ragged
from tritonpress_generator.errors import InputError
from tritonpress_generator.lengths.exact import INTEGERS
from tritonpress_generator.recipe_text import ServeConfig, Settings
from tritonpress_generator.signature import Signature

ATTENTION = ragged.ATTENTION
POSTPROCESSING_BATCHES = False
"""An answer is `[1, texts, width]` or `[1, tokens]`, beside `[texts, 1]` texts: Triton batches only what agrees."""

export = ragged.export
native = ragged.packed
as_padded = ragged.as_padded


class Config(Settings):
    max_tokens: int | None = Field(default=None, ge=8)
    """The most tokens of an execution; default: what `memory_mib` has room for."""
    memory_mib: int = Field(default=1024, ge=16)
    """What an execution may take, beside the weights, where attention is fused. Without `fuse` attention is unpacked to
    the longest text, and one long text among many short ones takes more (451 MiB for 1 of 256 tokens and 63 of 8)."""


def engine_inputs(signature: Signature, integers: str) -> list[pb.ModelInput]:
    """Returns the inputs of the engine's config; `integers` is their type, as NumPy has it."""
    return [
        pb.ModelInput(name=name, data_type=INTEGERS[integers], dims=[-1], allow_ragged_batch=True)
        for name in ragged.inputs(signature)
    ]


def declare_outputs(config: pb.ModelConfig, signature: Signature) -> None:
    """Adds the outputs to the engine's config."""
    for name, output in signature.outputs.items():
        dims, source = ([-1], "input_ids") if output.width is None else ([-1, output.width], "lengths")
        config.output.append(pb.ModelOutput(name=name, data_type=pb.TYPE_FP32, dims=dims))
        config.batch_output.append(
            pb.BatchOutput(
                target_name=[name],
                kind=pb.BatchOutput.BATCH_SCATTER_WITH_INPUT_SHAPE,
                source_input=[source],
            )
        )


def tokenizer_settings(
    config: Config, serve: ServeConfig, signature: Signature, lengths: Sequence[int], encoder: Any
) -> dict[str, object]:
    """Returns what the tokenizer must know.

    Raises:
        InputError: An execution would have less room than its requests may need.
    """
    room = config.memory_mib * 2**20 // bytes_per_token(encoder)
    most = config.max_tokens or room
    least = serve.max_batch_size * serve.max_length
    if most < least:
        given = f"max_tokens {most}" if config.max_tokens else f"{most}, for which memory_mib has room"
        raise InputError(
            f"serve.lengths.ragged: an execution must have room for {least} tokens (serve.max_batch_size requests of "
            f"one text of serve.max_length), got {given}; raise it, or lower one of these"
        )
    return {"packed": True, "max_tokens": most}


def bytes_per_token(encoder: Any) -> int:
    """Returns an upper bound of what a token takes in an execution: the FP32 activations that are alive at once.

    Two of the feed-forward block's inner width and eight of the hidden width: 24.6 kB for MiniLM-L6 (384, 1536), where
    ONNX Runtime was measured to take 22 kB (INT8) and 20 kB (FP32) with attention fused.
    """
    config = encoder.config
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", 0) or getattr(config, "hidden_dim", 4 * hidden))
    return 4 * (2 * inner + 8 * hidden)
