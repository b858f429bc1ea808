"""What one RMSNorm is: weight, epsilon and the family's habit of storing the weight as an offset."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Norm:
    """y = x * rsqrt(mean(x^2) + eps) * (offset + weight) over the last dimension, computed in fp32.

    weight: [K], any float dtype, contiguous; None for a norm without weight (Gemma 4's value norm).
    offset: 1.0 for Gemma 3, which stores weight - 1; 0.0 for Gemma 4 and Qwen3.
    """

    weight: torch.Tensor | None
    eps: float
    offset: float = 0.0


def norm_operands(norm: Norm | None, filler: torch.Tensor) -> tuple[torch.Tensor, float, float, bool, bool]:
    """(weight, eps, offset, NORM, WEIGHT) of a norm that may be missing, as kernels take them.

    `filler` stands in for a weight that is not there.
    """
    if norm is None:
        return filler, 0.0, 0.0, False, False
    if norm.weight is None:
        return filler, norm.eps, 0.0, True, False
    return norm.weight, norm.eps, norm.offset, True, True
