"""Which graph pass cannot work behind which other one, or for which engine, by what their files say of themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tritonpress_generator.errors import InputError

if TYPE_CHECKING:
    from tritonpress_generator.recipe import Stage


def check(graph: Sequence[Stage], engine: Stage, *, path: Path, key: str) -> None:
    """Refuses graph passes that cannot work together, whatever the model is.

    Args:
        graph: In their order.
        engine: That is to run what they make.
        path: The recipe.
        key: Where in it they stand.

    Raises:
        InputError: One of them finds nothing to do behind one before it, or the engine cannot take what they make.
    """
    for place, then in enumerate(graph):
        for before, first in enumerate(graph[:place]):
            reason = _reason(first, then)
            if reason is not None:
                raise InputError(
                    f"{path}: {key}[{place}]: {then.word} must not come behind {first.word} ({key}[{before}]): {reason}"
                )
    refusal = engine.module.refusal([(stage.word, stage.config) for stage in graph], engine.config)
    if refusal is not None:
        raise InputError(f"{path}: {key}: the engine {engine.word} cannot take it: {refusal}")


def _reason(first: Stage, then: Stage) -> str | None:
    """Returns why `then` cannot work behind `first`, and what to do; None where it can."""
    if then.module.READS == "export":
        remedy = "name it once" if first.word == then.word else f"leave {first.word} out"
        return f"it wants the graph as it is exported, in ONNX's operators alone and not quantised yet; {remedy}"
    # By `keep` it may leave some, which only the graph says.
    leaves_some = getattr(first.config, "exclude", None) or getattr(first.config, "keep", None)
    if then.module.READS == first.module.READS == "products" and not leaves_some:
        return f"no product is left in FP32; quantise once, or name in exclude what {first.word} is to leave"
    return None
