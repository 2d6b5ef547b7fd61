"""How many tokens an encoder has positions for, and what wants more."""

from __future__ import annotations

from typing import Any

from tritonpress_generator.errors import InputError


def check_length(max_length: int, encoder: Any, *, where: str) -> None:
    """Refuses a `max_length` beyond the model's positions, which would fail at the first long text."""
    most = most_tokens(encoder)
    if most is not None and max_length > most:
        raise InputError(f"{where} must be at most {most} (the model's positions), got {max_length}; lower it")


def most_tokens(encoder: Any) -> int | None:
    """Returns how many tokens the encoder has positions for; None where its positions have no end."""
    config = encoder.config
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    # RoBERTa and its kin begin to count behind the padding token.
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    return positions - (config.pad_token_id + 1 if getattr(table, "padding_idx", None) is not None else 0)
