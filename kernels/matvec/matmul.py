"""The product of a weight with many vectors, for prefill: cuBLAS where the format is dense."""

from __future__ import annotations

import torch

from kernels.matvec.formats import Weight


def matmul(weight: Weight, x: torch.Tensor) -> torch.Tensor:
    """x [..., T, K] times the weight's [N, K] rows -> [..., T, N] in x's dtype."""
    return torch.nn.functional.linear(x, weight.data)
