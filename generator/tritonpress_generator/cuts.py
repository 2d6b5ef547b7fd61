"""What was cut from a model, as it can be written down and done again: which layers, units, tokens and positions stay.

Each cut is of the model as the ones before it have left it. `passes/crop.py` and `passes/prune.py` choose; here it is
done, by them and by who restores what they chose elsewhere (`passes/restore.py`). A cut raises ValueError where what
is to stay is not there, or nothing is.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from tritonpress_generator.compression import Compressed
from tritonpress_generator.errors import InputError
from tritonpress_generator.pretrained import encoder_of
from tritonpress_generator.structure import Kind, depth, groups, keep_layers
from tritonpress_generator.vocabulary import cropped

_SPECIAL_IDS = tuple(f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep", "mask", "unk"))
_DOES_NOT_FIT = (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)
"""What a cut of another model, or one that is none, ends in."""


def layers(given: Compressed, kept: Sequence[int]) -> Compressed:
    """Returns the model with the layers `kept` alone; changes the one that is given."""
    _check_rows(kept, depth(given.model))
    keep_layers(given.model, kept)
    return _with(given, "layers", list(kept))


def units(given: Compressed, kept: Sequence[Sequence[int]], kind: Kind) -> Compressed:
    """Returns the model with the heads or neurons `kept` of each layer alone; changes the one that is given."""
    for group, of_layer in zip(groups(given.model, [kind]), kept, strict=True):
        _check_rows(of_layer, group.units)
        group.keep(of_layer)
    return _with(given, kind, [list(of_layer) for of_layer in kept])


def positions(given: Compressed, rows: int) -> Compressed:
    """Returns the model with the first `rows` of its table of positions; changes the one that is given."""
    encoder = encoder_of(given.model)
    encoder.embeddings.position_embeddings = _first(encoder.embeddings.position_embeddings, rows)
    encoder.config.max_position_embeddings = rows
    for name in ("position_ids", "token_type_ids"):
        buffer = getattr(encoder.embeddings, name, None)
        if isinstance(buffer, torch.Tensor):
            setattr(encoder.embeddings, name, buffer[:, :rows].clone())
    return _with(given, "positions", rows)


def segments(given: Compressed, rows: int) -> Compressed:
    """Returns the model with the first `rows` of its table of segments; changes the one that is given."""
    encoder = encoder_of(given.model)
    encoder.embeddings.token_type_embeddings = _first(encoder.embeddings.token_type_embeddings, rows)
    encoder.config.type_vocab_size = rows
    return _with(given, "segments", rows)


def vocabulary(given: Compressed, used: Sequence[int]) -> Compressed:
    """Returns the model with the tokens `used` and those that any text is spelt with; changes the one that is given."""
    encoder = encoder_of(given.model)
    # A tokenizer's ids may have gaps, so that the largest says nothing of their number.
    _check_rows(used, encoder.get_input_embeddings().num_embeddings)
    tokenizer, old = cropped(given.tokenizer, used)
    new = {before: after for after, before in enumerate(old)}
    table = encoder.get_input_embeddings()
    # Some checkpoints have more rows than tokens; none of them can be asked for.
    encoder.set_input_embeddings(_rows(table, old, padding=new.get(table.padding_idx)))
    for config in (encoder.config, given.model.config):
        config.vocab_size = len(old)
    for name in _SPECIAL_IDS:
        before = getattr(encoder.config, name, None)
        if before in new:
            setattr(encoder.config, name, new[before])
    ids = given.original_ids
    ids = tuple(old if ids is None else (ids[number] for number in old))
    return _with(replace(given, tokenizer=tokenizer, original_ids=ids), "vocabulary", old)


_CUTS: Mapping[str, Callable[[Compressed, Any], Compressed]] = {
    "layers": layers,
    "heads": partial(units, kind="heads"),
    "ffn": partial(units, kind="ffn"),
    "positions": positions,
    "segments": segments,
    "vocabulary": vocabulary,
}


def again(given: Compressed, cuts: Sequence[Mapping[str, Any]]) -> Compressed:
    """Returns the model with `cuts`, as `written` gives them, done again; changes the one that is given.

    Raises:
        InputError: They do not fit the model.
    """
    for cut in cuts:
        ((name, value),) = cut.items()
        try:
            kept = _read(value)
            given = _CUTS[name](given, kept)
        except _DOES_NOT_FIT as exc:
            raise InputError(
                f"passes.restore: the cut {name[:60]!r} does not fit a model of {depth(given.model)} layers "
                f"({type(exc).__name__}: {str(exc)[:200]}); take the checkpoint that was cut"
            ) from exc
    return given


def written(cuts: Sequence[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Returns cuts as JSON has them: what is kept as masks of bits, in base64."""
    return [{name: _mask(value)} for name, value in cuts]


def _mask(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return [_mask(part) for part in value]
    if not isinstance(value, list):
        return value
    bits = np.zeros(max(value) + 1, np.bool_)
    bits[value] = True
    return {"bits": base64.b64encode(np.packbits(bits).tobytes()).decode()}


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return [_read(part) for part in value]
    if not isinstance(value, dict):
        return int(value)
    return np.flatnonzero(np.unpackbits(np.frombuffer(base64.b64decode(value["bits"]), np.uint8))).tolist()


def _with(given: Compressed, name: str, kept: Any) -> Compressed:
    return replace(given, cuts=(*given.cuts, (name, kept)))


def _check_rows(kept: Sequence[int], count: int) -> None:
    """Refuses rows that are not ascending places of `count` things, and none at all."""
    if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= count:
        raise ValueError(f"must keep at least one of {count}, each once, in ascending order")


def _first(table: torch.nn.Embedding, rows: int) -> torch.nn.Embedding:
    """Returns the first `rows` of a table, among them that of padding."""
    least = 1 if table.padding_idx is None else table.padding_idx + 1
    # A number of any size would be counted to.
    if not least <= rows <= table.num_embeddings:
        raise ValueError(f"must keep from {least} to {table.num_embeddings} rows, got {rows}")
    return _rows(table, range(rows))


def _rows(table: torch.nn.Embedding, rows: Sequence[int], padding: int | None = -1) -> torch.nn.Embedding:
    """Returns `rows` of a table; `padding` is that token's new place, by default the old one."""
    padding = table.padding_idx if padding == -1 else padding
    kept = torch.nn.Embedding(len(rows), table.embedding_dim, padding_idx=padding)
    kept.weight = torch.nn.Parameter(table.weight.detach()[torch.tensor(list(rows))].clone())
    return kept
