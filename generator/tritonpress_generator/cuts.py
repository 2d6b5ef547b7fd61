"""What was cut from a model, as it can be written down and done again: which layers, units, tokens and positions stay.

Each cut is of the model as the ones before it have left it. `passes/crop.py` and `passes/prune.py` choose; here it is
done, by them and by who restores what they chose elsewhere (`passes/restore.py`). A cut raises ValueError where what
is to stay is not there, or nothing is.
"""

from __future__ import annotations

import base64
import math
import operator
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
Places = Sequence[int] | Mapping[str, str]
"""The places of what stays, or as they are written: a mask of bits."""


def layers(given: Compressed, kept: Places) -> Compressed:
    """Returns the model with the layers `kept` alone; changes the one that is given."""
    left = _places(kept, depth(given.model))
    keep_layers(given.model, left)
    return _with(given, "layers", left)


def units(given: Compressed, kept: Sequence[Places], kind: Kind) -> Compressed:
    """Returns the model with the heads or neurons `kept` of each layer alone; changes the one that is given."""
    left = []
    for group, of_layer in zip(groups(given.model, [kind]), kept, strict=True):
        left.append(_places(of_layer, group.units))
        group.keep(left[-1])
    return _with(given, kind, left)


def positions(given: Compressed, rows: int) -> Compressed:
    """Returns the model with the first `rows` of its table of positions; changes the one that is given."""
    rows = operator.index(rows)
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
    rows = operator.index(rows)
    encoder = encoder_of(given.model)
    encoder.embeddings.token_type_embeddings = _first(encoder.embeddings.token_type_embeddings, rows)
    encoder.config.type_vocab_size = rows
    return _with(given, "segments", rows)


def vocabulary(given: Compressed, used: Places) -> Compressed:
    """Returns the model with the tokens `used` and those that any text is spelt with; changes the one that is given."""
    encoder = encoder_of(given.model)
    # A tokenizer's ids may have gaps, so that the largest says nothing of their number.
    tokenizer, old = cropped(given.tokenizer, _places(used, encoder.get_input_embeddings().num_embeddings))
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
            given = _CUTS[name](given, value)
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


def _with(given: Compressed, name: str, kept: Any) -> Compressed:
    return replace(given, cuts=(*given.cuts, (name, kept)))


def _places(kept: Places, count: int) -> list[int]:
    """Returns places of `count` things; refuses what are not ascending ones, and none at all."""
    left = [operator.index(place) for place in (_of_mask(kept, count) if isinstance(kept, Mapping) else kept)]
    if not left or left != sorted(set(left)) or left[0] < 0 or left[-1] >= count:
        raise ValueError(f"must keep at least one of {count}, each once, in ascending order")
    return left


def _of_mask(mask: Mapping[str, str], count: int) -> list[int]:
    """Returns the places that a mask of `count` things has a bit of."""
    bits = mask["bits"]
    # One of any length would be counted out.
    if len(bits) > 4 * math.ceil(count / 24):
        raise ValueError(f"a mask must be of {count} things at most, has room for {len(bits) * 6}")
    places: list[int] = np.flatnonzero(np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8))).tolist()
    return places


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
