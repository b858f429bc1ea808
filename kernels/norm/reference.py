"""Plain torch twins of the norm kernels: fp32 inside, rounded once at the end.

They are the specification and the CPU path.
"""

from __future__ import annotations

import torch

from kernels.norm.spec import Norm


def normalise(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """RMSNorm of x [..., K] in fp32, without rounding to x's dtype."""
    value = x.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + norm.eps)
    return value if norm.weight is None else value * (norm.offset + norm.weight.float())


def rms_norm(x: torch.Tensor, norm: Norm, *, out: torch.Tensor | None = None, pdl: bool = False) -> torch.Tensor:
    """Twin of kernels.norm.rms_norm. `pdl` is accepted and means nothing here."""
    out = torch.empty_like(x) if out is None else out
    return out.copy_(normalise(x, norm))


def sandwich(
    h: torch.Tensor,
    y: torch.Tensor,
    *,
    post: Norm | None = None,
    scalar: torch.Tensor | None = None,
    pre: Norm | None = None,
    h_out: torch.Tensor | None = None,
    x_out: torch.Tensor | None = None,
    pdl: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Twin of kernels.norm.sandwich. The next norm sees h_new as stored, rounded to its dtype."""
    branch = y.float() if post is None else normalise(y, post)
    total = h.float() + branch
    if scalar is not None:
        total = total * scalar.float()
    h_out = torch.empty_like(h) if h_out is None else h_out
    h_out.copy_(total)
    if pre is None:
        return h_out, None
    x_out = torch.empty_like(h) if x_out is None else x_out
    return h_out, x_out.copy_(normalise(h_out, pre))
