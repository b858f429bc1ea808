"""Plain torch twins of the matvec entry points: fp32 products and sums, one rounding at the end."""

from __future__ import annotations

import torch

from kernels.gated.reference import Activation, activate
from kernels.matvec.configs import MatvecConfig
from kernels.matvec.formats import Weight
from kernels.norm.reference import normalise
from kernels.norm.spec import Norm


def _product(weight: Weight, x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    vector = x.reshape(-1)
    return weight.data.float() @ (vector.float() if norm is None else normalise(vector, norm))


def matvec(
    weight: Weight,
    x: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    residual: torch.Tensor | None = None,
    norm: Norm | None = None,
    softcap: float | None = None,
    launch: MatvecConfig | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """Twin of kernels.matvec.matvec. `launch` and `pdl` are accepted and mean nothing here."""
    y = _product(weight, x, norm)
    if softcap is not None:
        y = softcap * torch.tanh(y / softcap)
    if residual is not None:
        y = y + residual.reshape(-1).float()
    if out is None:
        out = torch.empty((*x.shape[:-1], weight.rows), dtype=out_dtype or x.dtype, device=x.device)
    out.view(-1).copy_(y)
    return out


def matvec_gated(
    weight: Weight,
    x: torch.Tensor,
    *,
    activation: Activation,
    out: torch.Tensor | None = None,
    norm: Norm | None = None,
    launch: MatvecConfig | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """Twin of kernels.matvec.matvec_gated."""
    gate, up = _product(weight, x, norm).chunk(2)
    if out is None:
        out = torch.empty((*x.shape[:-1], weight.rows // 2), dtype=x.dtype, device=x.device)
    out.view(-1).copy_(activate(gate, activation) * up)
    return out
