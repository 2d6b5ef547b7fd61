"""Where the tokens of packed sequences lie, as the ragged graph works it out from their lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Layout:
    """Where the tokens of packed sequences lie; made in the graph, once for all layers."""

    lengths: torch.Tensor
    """INT64 `(sequences,)`."""
    starts: torch.Tensor
    """INT64 `(sequences,)`: the packed index of each sequence's first token."""
    sequence: torch.Tensor
    """INT64 `(tokens,)`: the sequence of each token."""
    position: torch.Tensor
    """INT64 `(tokens,)`: each token's position in its sequence, from 0."""
    unpack: torch.Tensor
    """INT64 `(sequences, longest)`: the packed index of what stands there in a padded batch; 0 where nothing does."""
    bias: torch.Tensor
    """FP32 `(sequences, 1, longest)`: 0 where a token stands in the padded batch, the lowest FP32 elsewhere."""
    pack: torch.Tensor
    """INT64 `(tokens,)`: each token's index in the padded batch, its two dimensions counted as one."""

    @staticmethod
    def of(lengths: torch.Tensor, tokens: torch.Tensor) -> Layout:
        """Returns the layout of sequences with `lengths`; `tokens` is INT64 `(tokens,)`, of which the shape counts."""
        ends = torch.cumsum(lengths, 0)
        starts = ends - lengths
        index = torch.cumsum(torch.ones_like(tokens), 0) - 1
        sequence = (index[:, None] >= ends[None, :]).to(torch.int64).sum(1)
        position = index - starts[sequence]
        longest = lengths.max()
        column = torch.arange(longest)  # type: ignore[call-overload]  # a tensor, so that tracing keeps it
        present = column[None, :] < lengths[:, None]
        unpack = torch.where(present, starts[:, None] + column[None, :], torch.zeros_like(starts)[:, None])
        bias = (1.0 - present.to(torch.float32)) * torch.finfo(torch.float32).min
        return Layout(lengths, starts, sequence, position, unpack, bias[:, None, :], sequence * longest + position)

    def means(self, states: torch.Tensor) -> torch.Tensor:
        """Returns the mean of each sequence's rows, `(sequences, width)` for the packed `(tokens, width)`."""
        row = torch.cumsum(torch.ones_like(self.lengths), 0) - 1
        members = (row[:, None] == self.sequence[None, :]).to(states.dtype)
        return torch.matmul(members, states) / self.lengths[:, None].to(states.dtype)
