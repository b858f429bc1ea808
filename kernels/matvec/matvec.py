"""Entry points of the matrix-vector products: checks, choice of the kernel by weight format, launch."""

from __future__ import annotations

import torch

from kernels.gated.kernel import ACTIVATIONS
from kernels.gated.reference import Activation
from kernels.matvec import reference
from kernels.matvec.configs import MatvecConfig, config_for
from kernels.matvec.dense import launch_dense
from kernels.matvec.formats import Weight
from kernels.norm.spec import Norm


def _check(name: str, tensor: torch.Tensor | None, count: int) -> None:
    if tensor is not None and not (tensor.numel() == count and tensor.is_contiguous()):
        raise ValueError(
            f"matvec: {name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}, expected "
            f"{count} contiguous values"
        )


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
    """y = cap(W norm(x)) + residual for one vector x [..., K] with K values in all -> [..., N].

    norm: RMSNorm of x as a prologue (x is the raw residual stream then). softcap: c * tanh(y / c) (final logits).
    residual: N values, added last; it may be `out`. out: N contiguous values of any float dtype, new when None
    (out_dtype, else x's dtype). launch: None takes the table's. pdl: dependent launch, see kernels/pdl.py.
    CPU tensors run the torch twin. Raises ValueError when sizes do not fit.
    """
    _check("x", x, weight.cols)
    _check("out", out, weight.rows)
    _check("residual", residual, weight.rows)
    if x.device.type == "cpu":
        return reference.matvec(weight, x, out=out, out_dtype=out_dtype, residual=residual, norm=norm, softcap=softcap)
    if out is None:
        out = torch.empty((*x.shape[:-1], weight.rows), dtype=out_dtype or x.dtype, device=x.device)
    launch = launch or config_for(weight.rows, weight.cols)
    launch_dense(
        weight.data, x, out,
        residual=residual, norm=norm, softcap=softcap, activation=None, launch=launch, pdl=pdl,
    )  # fmt: skip
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
    """a = act(W_gate norm(x)) * (W_up norm(x)) for weight [2F, K] = gate|up and one vector x [..., K] -> [..., F].

    Arguments as in `matvec`. Raises ValueError when sizes do not fit or the activation is unknown.
    """
    if weight.rows % 2 or activation not in ACTIVATIONS:
        raise ValueError(
            f"matvec_gated: found {weight.rows} rows and activation {activation!r}, expected even and known"
        )
    _check("x", x, weight.cols)
    _check("out", out, weight.rows // 2)
    if x.device.type == "cpu":
        return reference.matvec_gated(weight, x, activation=activation, out=out, norm=norm)
    if out is None:
        out = torch.empty((*x.shape[:-1], weight.rows // 2), dtype=x.dtype, device=x.device)
    launch = launch or config_for(weight.rows, weight.cols, gated=True)
    launch_dense(
        weight.data, x, out,
        residual=None, norm=norm, softcap=None, activation=activation, launch=launch, pdl=pdl,
    )  # fmt: skip
    return out
