"""The recipe's `search:` section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tritonpress_generator.recipe_text import Settings

Share = Annotated[float, Field(ge=0, lt=1)]


def results_of(recipe: Path) -> Path:
    """Returns the folder into which a search of the recipe writes those of its points."""
    return recipe.parent / f"{recipe.stem}.search"


class SpaceConfig(Settings):
    """What is tried. What the recipe's own `crop`, `prune` and `distill` say beside it holds for every candidate."""

    layers: list[Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    """How many layers stay; default: all, and every number down to half."""
    flops: list[Share] | None = Field(default=None, min_length=1)
    """Shares of the layers' multiplications that are pruned, heads and neurons together; default: 0 to 0.5, unless
    `heads` or `ffn` is given."""
    heads: list[Share] = Field(default=[0.0], min_length=1)
    """Shares of the attention heads that are pruned."""
    ffn: list[Share] = Field(default=[0.0], min_length=1)
    """Shares of the FFN neurons that are pruned."""
    vocabulary: list[bool] = Field(default=[False, True], min_length=1)
    """Whether the vocabulary is cropped to what the training examples have."""
    precisions: list[list[str | dict[str, Any]]] | None = Field(default=None, min_length=1)
    """Lists of graph passes, the fastest first; default: the recipe's, and the recipe's without its quantisation. Where
    one costs too much, layers are left out of it, the most sensitive first, and then the next is taken."""
    lengths: list[str | list[int] | dict[str, Any]] | None = Field(default=None, min_length=1)
    """Forms of the lengths, as `serve.lengths` has them; default: the recipe's."""

    @model_validator(mode="after")
    def _prunes_in_one_way(self) -> SpaceConfig:
        if self.flops is not None and any(self.flops) and any((*self.heads, *self.ffn)):
            raise ValueError("give flops, or heads and ffn")
        return self

    @model_validator(mode="after")
    def _names_forms(self) -> SpaceConfig:
        if "auto" in (self.lengths or ()):
            raise ValueError("lengths must be forms, got auto; leave them out, and the fastest is chosen by measuring")
        return self


class Config(Settings):
    objective: Literal["throughput", "latency", "size"] = "throughput"
    """What is made the best under the gate: texts per second of all instances, the time of a text alone, or the size of
    the engine. The front is of the metric, the latency and the size in any case."""
    budget_minutes: float = Field(default=60.0, gt=0)
    """The time for all of it, from reading the recipe to the final builds; what was spent before a search was killed
    counts. A distillation that is not expected to fit in what is left is not begun."""
    trials: int | None = Field(default=None, ge=1)
    """The most candidates that are built; default: as many as the time allows."""
    proposals: int = Field(default=8, ge=2)
    """Candidates of a round. The better half by estimate is built and measured, the better half of those is scored (and
    distilled) in full."""
    examples: int = Field(default=200, ge=8)
    """On how many held-out examples a candidate is scored first; those that are left, on up to 1000."""
    rounds: int = Field(default=5, ge=1)
    """How often each engine's turn comes when they are timed."""
    slice_s: float = Field(default=0.5, gt=0)
    """How long a turn is."""
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    """Of the sampler."""
    space: SpaceConfig = SpaceConfig()
    """What is tried."""
