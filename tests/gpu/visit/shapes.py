"""The encoders that the visit measures, and how much they compute."""

from __future__ import annotations

from dataclasses import dataclass

BATCHES = (1, 8, 32, 128)
LENGTHS = (32, 128, 384)


@dataclass(frozen=True)
class Shape:
    """A BERT encoder with a span head."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocabulary: int = 30522
    positions: int = 512

    def operations(self, length: int) -> float:
        """Returns the floating-point operations of the products of one sequence of `length` tokens.

        Two for each of the 4·h² + 2·h·f weights of a layer that a token meets, and 4·h·length of attention's own.
        """
        weights = 4 * self.hidden**2 + 2 * self.hidden * self.intermediate
        return float(self.layers * length * (2 * weights + 4 * self.hidden * length))


SHAPES = {
    "tiny": Shape(layers=2, hidden=64, heads=2, intermediate=128, vocabulary=100, positions=512),
    "minilm": Shape(layers=6, hidden=384, heads=12, intermediate=1536),
    "base": Shape(layers=12, hidden=768, heads=12, intermediate=3072),
    "large": Shape(layers=24, hidden=1024, heads=16, intermediate=4096),
}
"""MiniLM-L6, BERT-Base and BERT-Large as their authors published them, and one for tests."""
MEASURED = ("large", "base", "minilm")
"""The first is what the aim is about."""
