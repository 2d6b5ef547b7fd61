"""How far the answers of a model are from those of the one it learns from."""

from __future__ import annotations

import torch


def divergence(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Returns the Kullback-Leibler divergence of softmax(logits) from softmax(wanted), over the last dimension.

    What is impossible in both (a logit of minus infinity) counts nothing.
    """
    probability = torch.softmax(wanted, -1)
    difference = torch.log_softmax(wanted, -1) - torch.log_softmax(logits, -1)
    return (probability * difference.masked_fill(probability == 0, 0.0)).sum(-1)
