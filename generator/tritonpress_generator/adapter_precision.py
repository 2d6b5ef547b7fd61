"""Low-rank adapters in FP8, half of FP16's bytes, in peft's own format.

A rank's row and column are scaled to the same length, and all of them by one power of two, which `lora_alpha` takes
back, so that the largest is near what FP8 ends at: E4M3 has three bits of mantissa from 2^-6 to 448.
Source: Micikevicius et al. 2022, "FP8 formats for deep learning".
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

_A, _B = "lora_A", "lora_B"


def in_fp8(state: Mapping[str, torch.Tensor], alpha: float) -> tuple[dict[str, torch.Tensor], float]:
    """Returns the adapter's tensors, those of low rank in FP8 (E4M3) and the head's in FP16, and the new `lora_alpha`.

    Args:
        state: By peft's names: for each module `…lora_A.weight`, FP32 `(rank, inputs)`, and `…lora_B.weight`, FP32
            `(outputs, rank)`; other names are of whole tensors.
        alpha: The `lora_alpha` that scales their products.
    """
    balanced: dict[str, torch.Tensor] = {}
    for name in (name for name in state if _A in name):
        rows, columns = state[name].float().cpu(), state[name.replace(_A, _B)].float().cpu()
        lengths = columns.norm(dim=0), rows.norm(dim=1)
        # A rank that has learnt nothing is 0 on one side, and stays so.
        scale = torch.where(lengths[1] * lengths[0] > 0, (lengths[0] / lengths[1]).sqrt(), torch.ones(()))
        balanced[name] = rows * scale[:, None]
        balanced[name.replace(_A, _B)] = columns / scale
    largest = max((float(tensor.abs().max()) for tensor in balanced.values()), default=0.0)
    exponent = math.floor(math.log2(torch.finfo(torch.float8_e4m3fn).max / largest)) if largest else 0
    written = {
        name: (balanced[name] * 2.0**exponent).to(torch.float8_e4m3fn) if name in balanced else tensor.half().cpu()
        for name, tensor in state.items()
    }
    return written, alpha / 4.0**exponent
