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
