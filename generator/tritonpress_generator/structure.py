"""Where an encoder's heads and FFN neurons are, in every family, and how they are taken out.

A unit (a head; a neuron) is a few rows of the linear layers that make it, and columns of the one that reads it. Taking
units out leaves a smaller dense model: `transformers` divides queries, keys and values by the size of a head, and takes
whatever number of heads there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from tritonpress_generator.errors import InputError
from tritonpress_generator.pretrained import encoder_of

Kind = Literal["heads", "ffn"]
_HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads")


@dataclass(frozen=True)
class _Names:
    """Where a family keeps its linear layers, from a layer on."""

    layers: str
    attention: str
    """Whose number of heads is said there."""
    made_by: tuple[str, ...]
    """What makes a head."""
    read_by: str
    ffn_made_by: tuple[str, ...]
    ffn_read_by: str
    stacked: tuple[int, int] = (1, 1)
    """How many layers lie in one: of a head (query, key and value), of a neuron (itself and its gate)."""
    post_norm: bool = True
    """Whether what a block reads is also what its answer is added to."""


_BERT = _Names(
    "encoder.layer",
    "attention.self",
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    ("intermediate.dense",),
    "output.dense",
)
_GATED = _Names(
    "layers",
    "self_attn",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj",
    ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj",
)
_FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "albert": _Names(
        "encoder.albert_layer_groups.0.albert_layers",
        "attention",
        ("attention.query", "attention.key", "attention.value"),
        "attention.dense",
        ("ffn",),
        "ffn_output",
    ),
    "mpnet": _Names(
        "encoder.layer",
        "attention.attn",
        ("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        "attention.attn.o",
        ("intermediate.dense",),
        "output.dense",
    ),
    "distilbert": _Names(
        "transformer.layer",
        "attention",
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        "attention.out_lin",
        ("ffn.lin1",),
        "ffn.lin2",
    ),
    "nomic_bert": _GATED,
    "eurobert": _Names(**{**vars(_GATED), "post_norm": False}),
    "modernbert": _Names(
        "layers", "attn", ("attn.Wqkv",), "attn.Wo", ("mlp.Wi",), "mlp.Wo", stacked=(3, 2), post_norm=False
    ),
    "deberta-v2": _Names(
        "encoder.layer",
        "attention.self",
        tuple(f"attention.self.{name}_proj" for name in ("query", "key", "value", "pos_key", "pos_query")),
        "attention.output.dense",
        ("intermediate.dense",),
        "output.dense",
    ),
}


@dataclass(frozen=True)
class Group:
    """The units of one block of one layer: the heads of an attention, the neurons of an FFN."""

    kind: Kind
    layer: int
    made_by: tuple[torch.nn.Linear, ...]
    stacked: int
    """How many times each of `made_by` has the rows of all units, one behind the other."""
    read_by: torch.nn.Linear
    units: int
    """Of grouped queries, a unit is the queries that share a key."""
    owner: Any
    """The module that says how many heads there are."""
    calls: int
    """How many layers of a forward pass are this one (ALBERT's share their weights)."""
    post_norm: bool
    """Whether what the block reads is also what its answer is added to."""

    @property
    def width(self) -> int:
        """How many columns of `read_by` a unit has."""
        return self.read_by.in_features // self.units

    def keep(self, units: Sequence[int]) -> Group:
        """Takes all others than `units` out of the model, and returns what is left."""
        index = torch.tensor(units, dtype=torch.int64)
        for linear in self.made_by:
            per_unit = linear.out_features // self.stacked // self.units
            rows = linear.weight.detach().reshape(self.stacked, self.units, per_unit, linear.in_features)[:, index]
            _set(linear, rows.reshape(-1, linear.in_features))
            if linear.bias is not None:
                bias = linear.bias.detach().reshape(self.stacked, self.units, per_unit)[:, index]
                linear.bias = torch.nn.Parameter(bias.reshape(-1).clone())
        columns = self.read_by.weight.detach().reshape(-1, self.units, self.width)[:, index]
        _set(self.read_by, columns.reshape(len(columns), -1))
        if self.kind == "heads":
            for name in _HEAD_COUNTS:
                if hasattr(self.owner, name):
                    setattr(self.owner, name, getattr(self.owner, name) // self.units * len(units))
            if hasattr(self.owner, "all_head_size"):
                self.owner.all_head_size = self.read_by.in_features
        return Group(**{**vars(self), "units": len(units)})

    def products(self, length: int) -> int:
        """Returns the multiplications that one unit costs a token of a sequence of `length` tokens."""
        rows = sum(linear.weight.numel() for linear in self.made_by) + self.read_by.weight.numel()
        return rows // self.units + (2 * length * self.width if self.kind == "heads" else 0)


def groups(model: Any, kinds: Sequence[Kind] = ("heads", "ffn")) -> list[Group]:
    """Returns the groups of a `transformers` model, in the order in which they are computed.

    Raises:
        InputError: The family is not known here, or its heads cannot be told apart.
    """
    encoder = encoder_of(model)
    family = encoder.config.model_type
    names = _names_of(model)
    if family == "mpnet" and "heads" in kinds:
        raise InputError(
            "passes: the heads of mpnet share a bias of positions over all layers, and cannot be pruned one by one; "
            "prune its ffn"
        )
    found: list[Group] = []
    all_layers = layers(model)
    calls = encoder.config.num_hidden_layers // len(all_layers)
    for number, layer in enumerate(all_layers):
        attention = layer.get_submodule(names.attention)
        for kind in kinds:
            heads = kind == "heads"
            made_by = [_part(layer, name) for name in (names.made_by if heads else names.ffn_made_by)]
            read_by = _part(layer, names.read_by if heads else names.ffn_read_by)
            if read_by is None:
                raise InputError(f"passes: layer {number} of {family} has no {kind}")
            linears = tuple(linear for linear in made_by if linear is not None)
            stacked = names.stacked[0 if heads else 1]
            units = _units(attention, linears, read_by, encoder.config) if heads else read_by.in_features
            found.append(Group(kind, number, linears, stacked, read_by, units, attention, calls, names.post_norm))
    return found


def _units(attention: Any, made_by: Sequence[torch.nn.Linear], read_by: torch.nn.Linear, config: Any) -> int:
    """Returns how many heads, or of grouped queries how many keys, an attention has."""
    size = getattr(attention, "attention_head_size", None) or getattr(attention, "head_dim", None)
    if size is None:
        size = config.hidden_size // config.num_attention_heads
    if len(made_by) == 1:
        return read_by.in_features // int(size)
    return min(linear.out_features for linear in made_by) // int(size)


def _part(layer: torch.nn.Module, name: str) -> torch.nn.Linear | None:
    """Returns the linear layer of the name, None where the model has none (DeBERTa may share its projections)."""
    try:
        part = layer.get_submodule(name)
    except AttributeError:
        return None
    return part if isinstance(part, torch.nn.Linear) else None


def _set(linear: torch.nn.Linear, weight: torch.Tensor) -> None:
    linear.weight = torch.nn.Parameter(weight.clone())
    linear.out_features, linear.in_features = weight.shape


def layers(model: Any) -> list[Any]:
    """Returns the layers of a `transformers` model; of a family whose layers share their weights, one.

    Raises:
        InputError: The family is not known here.
    """
    return list(encoder_of(model).get_submodule(_names_of(model).layers).children())


def projections(model: Any) -> tuple[list[Any], int]:
    """Returns what makes the queries, keys and values of the last layer, and how many of them lie in one.

    Raises:
        InputError: The family is not known here.
    """
    names = _names_of(model)
    return [layers(model)[-1].get_submodule(name) for name in names.made_by[:3]], names.stacked[0]


def depth(model: Any) -> int:
    """Returns how many layers a forward pass of a `transformers` model has.

    Raises:
        InputError: The family is not known here.
    """
    _names_of(model)
    return int(encoder_of(model).config.num_hidden_layers)


def product_pattern(model: Any, layer: int) -> str:
    """Returns what matches the names of a layer's products in an export, as `exclude` has it.

    Raises:
        InputError: The family is not known here.
    """
    return f"*{_names_of(model).layers.rpartition('.')[2]}.{layer}/*"


def keep_layers(model: Any, kept: Sequence[int]) -> Callable[[], None]:
    """Takes all layers but `kept` out of the model, and returns what puts them back.

    Of a family whose layers share their weights, there are then as many passes through them.

    Raises:
        InputError: The family is not known here.
    """
    path, encoder = _names_of(model).layers, encoder_of(model)
    config, modules = encoder.config, encoder.get_submodule(path)
    depth_before, types_before = config.num_hidden_layers, getattr(config, "layer_types", None)

    def put(chosen: torch.nn.ModuleList, count: int, types: list[str] | None) -> None:
        encoder.set_submodule(path, chosen)
        config.num_hidden_layers = count
        if types is not None:
            config.layer_types = types

    shared = len(modules) < depth_before
    chosen = modules if shared else torch.nn.ModuleList([modules[i] for i in kept])
    put(chosen, len(kept), None if types_before is None else [types_before[i] for i in kept])
    return lambda: put(modules, depth_before, types_before)


def _names_of(model: Any) -> _Names:
    config = encoder_of(model).config
    family = config.model_type
    if family not in _FAMILIES:
        raise InputError(f"passes: the layers of {family} are not known; known: {', '.join(_FAMILIES)}")
    if family == "albert" and (config.num_hidden_groups, config.inner_group_num) != (1, 1):
        raise InputError("passes: an albert must have one group of one layer, has several; leave the passes out")
    return _FAMILIES[family]
