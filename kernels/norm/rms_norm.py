"""RMSNorm of T rows: one program a row, the row held in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.norm import reference
from kernels.norm.spec import Norm
from kernels.pdl import gdc_launch_dependents, gdc_wait, launch_options


@triton.jit
def normalise_row(value, weight_ptr, cols, mask, K, eps, offset, HAS_WEIGHT: tl.constexpr):
    """RMSNorm of one fp32 row [BLOCK]; masked lanes must hold zero. Loads the weight itself."""
    scale = tl.rsqrt(tl.sum(value * value, 0) / K + eps)
    value = value * scale
    if HAS_WEIGHT:
        value = value * (offset + tl.load(weight_ptr + cols, mask=mask, other=0.0).to(tl.float32))
    return value


@triton.jit
def _rms_norm_kernel(
    x, weight, out, eps, offset, K: tl.constexpr, HAS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * K
    cols = tl.arange(0, BLOCK)
    mask = cols < K
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    value = tl.load(x + row + cols, mask=mask, other=0.0).to(tl.float32)  # [BLOCK]
    value = normalise_row(value, weight, cols, mask, K, eps, offset, HAS_WEIGHT)
    tl.store(out + row + cols, value.to(out.dtype.element_ty), mask=mask)


def row_warps(block: int) -> int:
    """Warps for a program that holds a row of `block` values.

    Eight measured best for a lone row on an H200: a small program finds room while the kernel before still drains.
    """
    return max(1, min(8, block // 512))


def launch_rms_norm(x: torch.Tensor, norm: Norm, out: torch.Tensor, pdl: bool) -> None:
    """Run the Triton kernel on contiguous x and out (also under the interpreter)."""
    K = x.shape[-1]
    rows = x.numel() // K
    block = triton.next_power_of_2(K)
    _rms_norm_kernel[(rows,)](
        x, x if norm.weight is None else norm.weight, out, norm.eps, norm.offset, K, norm.weight is not None,
        block, pdl, num_warps=row_warps(block), **launch_options(pdl),
    )  # fmt: skip


def rms_norm(x: torch.Tensor, norm: Norm, *, out: torch.Tensor | None = None, pdl: bool = False) -> torch.Tensor:
    """RMSNorm over the last dimension of x [..., K] (any float dtype, contiguous); `out` like x, new when None.

    CPU tensors run the torch twin. Raises ValueError when x or out is not contiguous or shapes differ.
    """
    if x.device.type == "cpu":
        return reference.rms_norm(x, norm, out=out, pdl=pdl)
    out = torch.empty_like(x) if out is None else out
    if not (x.is_contiguous() and out.is_contiguous() and x.shape == out.shape):
        raise ValueError(f"rms_norm: x {tuple(x.shape)} and out {tuple(out.shape)} must be contiguous and of one shape")
    launch_rms_norm(x, norm, out, pdl)
    return out
