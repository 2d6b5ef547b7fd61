"""Which pass makes no sense behind which other one, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonpress_generator.errors import InputError


def _always(first: Any, then: Any) -> bool:
    return True


@dataclass(frozen=True)
class _Rule:
    """A pass that is refused behind another one."""

    first: str | None
    """The word of the one; None: any."""
    then: str
    """The word of the other, somewhere behind it."""
    reason: str
    remedy: str
    applies: Callable[[Any, Any], bool] = _always
    """Says so of the settings of both."""


_ZEROS_LAST = "name sparsify behind it"
_RULES = (
    _Rule(None, "restore", "what is restored was cut from the checkpoint as it is", "name restore first"),
    _Rule("sparsify", "distill", "training makes other numbers of the zeros", _ZEROS_LAST),
    _Rule(
        "sparsify", "prune", "what is taken out and solved for leaves another share and pattern of zeros", _ZEROS_LAST
    ),
    _Rule(
        "sparsify",
        "crop",
        "the share of zeros is one of all layers, and some of them are taken out",
        _ZEROS_LAST,
        lambda _, crop: crop.layers is not None,
    ),
    _Rule(
        "distill",
        "distill",
        "what was trained for INT8 (fake_quantize) is trained away",
        "give the last one fake_quantize",
        lambda first, then: first.fake_quantize is not None and then.fake_quantize is None,
    ),
    _Rule(
        "distill",
        "prune",
        "the weights that are solved for are not those that were trained for INT8 (fake_quantize)",
        "name prune first, or give it reconstruct: false",
        lambda distill, prune: distill.fake_quantize is not None and prune.reconstruct,
    ),
)


def check(passes: Sequence[tuple[str, Any]], *, path: Path) -> None:
    """Refuses passes in an order that makes no sense.

    Args:
        passes: Their words and settings, in their order.
        path: The recipe.

    Raises:
        InputError: One of them undoes what one before it has done, or cannot be done behind it; says why.
    """
    for place, (then, settings) in enumerate(passes):
        for before, (first, of_first) in enumerate(passes[:place]):
            for rule in _RULES:
                if rule.first in (None, first) and rule.then == then and rule.applies(of_first, settings):
                    raise InputError(
                        f"{path}: passes[{place}]: {then} must not come behind {first} (passes[{before}]): "
                        f"{rule.reason}; {rule.remedy}"
                    )
