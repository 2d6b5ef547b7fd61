"""What a candidate may be worth, before anything of it is computed: from one run of the model as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tritonpress_generator.compression import Compressed, Material
from tritonpress_generator.errors import InputError
from tritonpress_generator.importance import gradients
from tritonpress_generator.passes import prune
from tritonpress_generator.pretrained import encoder_of
from tritonpress_generator.search.space import Candidate
from tritonpress_generator.structure import Group, groups

_BATCH = 32
_FP32_BYTES = 4


@dataclass(frozen=True)
class Estimate:
    """What is expected of a candidate."""

    loss: float
    """How much the task's loss rises by what is cut, in nats an example; what quantising adds is not in it."""
    products: float
    """Multiplications of the layers for a token."""
    size_bytes: float
    """Of the weights in FP32."""


class Estimator:
    """Estimates candidates by the Fisher information of masks on heads and neurons (`importance.py`).

    Taking units out costs half the quadratic form of the information over them, in nats an example: of a whole layer
    with all their interplay, of single units by the diagonal alone, since which of them go is not decided yet.
    """

    def __init__(self, model: Compressed, material: Material, *, samples: int, length: int) -> None:
        """Runs the model once, forwards and backwards.

        Args:
            model: As it is.
            material: Has the training examples.
            samples: How many of them are run.
            length: The tokens of a sequence for which multiplications are counted.

        Raises:
            InputError: The family's layers are not known, there are no examples, or the loss on them is not finite.
        """
        self._groups, self._length = prunable(model.model), length
        features = material.features(model.tokenizer, samples, as_served=True)
        head, _ = material.head(model.model)
        model.model.requires_grad_(False)
        found = gradients(self._groups, material.batches(features, _BATCH), lambda batch: material.losses(head, batch))
        if not all(np.isfinite(one).all() for one in found):
            raise InputError(
                "search: the loss on the training examples must be finite, is not; check the checkpoint and the labels"
            )
        self._information = [np.square(one.astype(np.float64)).mean(0) / 2 for one in found]
        self._depth = int(encoder_of(model.model).config.num_hidden_layers)
        self._layer_losses = self._of_layers(found)
        self._bytes = model.size_bytes
        table = encoder_of(model.model).get_input_embeddings().weight
        used = {number for feature in features for number in feature["input_ids"]}
        self._unused_bytes = _FP32_BYTES * table.shape[1] * max(0, table.shape[0] - len(used))

    def __call__(self, candidate: Candidate) -> Estimate | None:
        """Returns the estimate; None where a layer would have nothing left."""
        kept = self._kept(candidate.layers)
        of = [group for group in self._groups if group.layer in kept]
        information = [self._information[i] for i, group in enumerate(self._groups) if group.layer in kept]
        shares = {"heads": candidate.heads, "ffn": candidate.ffn}
        if candidate.flops:
            try:
                shares = prune.divided(of, information, candidate.flops, self._length)
            except InputError:
                return None
        dropped = sum(sorted(self._layer_losses)[: self._depth - candidate.layers])
        loss, products, size = dropped, 0.0, float(self._bytes)
        shared = self._depth > len({group.layer for group in self._groups})
        size -= 0 if shared else sum(_weights(g) * g.units for g in self._groups if g.layer not in kept) * _FP32_BYTES
        for kind, share in shares.items():
            members = [i for i, group in enumerate(of) if group.kind == kind]
            if not members:
                continue
            units = np.sort(np.concatenate([information[i] for i in members]))
            gone = round(share * len(units))
            if gone > len(units) - len(members):
                return None
            loss += float(units[:gone].sum())
            group = of[members[0]]
            size -= gone * _weights(group) * _FP32_BYTES
            products += (len(units) - gone) * group.products(self._length)
        products *= candidate.layers / len(kept)
        return Estimate(loss, products, size - (self._unused_bytes if candidate.vocabulary else 0))

    def _kept(self, count: int) -> set[int]:
        """Returns the layers that cost the most to take out; of a family that shares them, the one that there is."""
        order = sorted({group.layer for group in self._groups}, key=lambda layer: -self._layer_losses[layer])
        return set(order[:count])

    def _of_layers(self, found: Sequence[NDArray[np.float32]]) -> list[float]:
        """Returns what each layer costs; of a family that shares them, an equal part each."""
        layers = sorted({group.layer for group in self._groups})
        losses = [
            float(
                np.square(
                    sum(one.sum(1) for one, g in zip(found, self._groups, strict=True) if g.layer == layer)
                ).mean()
            )
            / 2
            for layer in layers
        ]
        return losses if len(layers) == self._depth else [sum(losses) / self._depth] * self._depth


def prunable(model: object) -> list[Group]:
    """Returns the groups of a model that can be pruned: of some families, the neurons alone.

    Raises:
        InputError: The family is not known here.
    """
    try:
        return groups(model)
    except InputError:
        return groups(model, ("ffn",))


def _weights(group: Group) -> int:
    """Returns how many weights a unit has."""
    return group.products(0)
