"""The seam between two matrices of a layer: h_new = (h + post(y)) * scalar, x_next = pre(h_new), in one kernel.

Expected gain over separate norm and add launches, per Gemma layer at T == 1: three kernels and two round trips less a
seam, about 2 x 3 us of the 220 us that an H200 needs to read a Gemma-4-31B layer. See scripts/results/NOTES.md for
what was measured.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.norm import reference
from kernels.norm.rms_norm import row_warps
from kernels.norm.spec import Norm, norm_operands
from kernels.pdl import gdc_launch_dependents, gdc_wait, launch_options


@triton.jit
def _sandwich_kernel(
    h, y, post_weight, scalar, pre_weight, h_out, x_out, post_eps, post_offset, pre_eps, pre_offset,
    POST: tl.constexpr, POST_WEIGHT: tl.constexpr, SCALAR: tl.constexpr, PRE: tl.constexpr, PRE_WEIGHT: tl.constexpr,
    K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * K
    cols = tl.arange(0, BLOCK)
    mask = cols < K
    if PDL:
        gdc_launch_dependents()
    post_gain = cols.to(tl.float32)
    pre_gain = post_gain
    # Norm weights are constants of the model: load them while the kernel before still runs.
    if POST and POST_WEIGHT:
        post_gain = post_offset + tl.load(post_weight + cols, mask=mask, other=0.0).to(tl.float32)
    if PRE and PRE_WEIGHT:
        pre_gain = pre_offset + tl.load(pre_weight + cols, mask=mask, other=0.0).to(tl.float32)
    factor = 1.0
    if SCALAR:
        factor = tl.load(scalar).to(tl.float32)
    if PDL:
        gdc_wait()
    total = tl.load(h + row + cols, mask=mask, other=0.0).to(tl.float32)  # [BLOCK]
    branch = tl.load(y + row + cols, mask=mask, other=0.0).to(tl.float32)
    if POST:
        branch = branch * tl.rsqrt(tl.sum(branch * branch, 0) / K + post_eps)
        if POST_WEIGHT:
            branch = branch * post_gain
    total += branch
    if SCALAR:
        total = total * factor
    stored = total.to(h_out.dtype.element_ty)
    tl.store(h_out + row + cols, stored, mask=mask)
    if PRE:
        value = tl.where(mask, stored.to(tl.float32), 0.0)
        value = value * tl.rsqrt(tl.sum(value * value, 0) / K + pre_eps)
        if PRE_WEIGHT:
            value = value * pre_gain
        tl.store(x_out + row + cols, value.to(x_out.dtype.element_ty), mask=mask)


def launch_sandwich(
    h: torch.Tensor,
    y: torch.Tensor,
    post: Norm | None,
    scalar: torch.Tensor | None,
    pre: Norm | None,
    h_out: torch.Tensor,
    x_out: torch.Tensor | None,
    pdl: bool,
) -> None:
    """Run the Triton kernel on contiguous tensors of one shape (also under the interpreter)."""
    K = h.shape[-1]
    rows = h.numel() // K
    block = triton.next_power_of_2(K)
    post_weight, post_eps, post_offset, post_on, post_has = norm_operands(post, h)
    pre_weight, pre_eps, pre_offset, pre_on, pre_has = norm_operands(pre, h)
    _sandwich_kernel[(rows,)](
        h, y, post_weight, h if scalar is None else scalar, pre_weight, h_out, h_out if x_out is None else x_out,
        post_eps, post_offset, pre_eps, pre_offset, post_on, post_has, scalar is not None, pre_on, pre_has,
        K, block, pdl, num_warps=row_warps(block), **launch_options(pdl),
    )  # fmt: skip


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
    """(h_new, x_next) of the residual stream h and a branch y, both [..., K], contiguous, of one dtype.

    h_new = (h + post(y)) * scalar, rounded to h's dtype; x_next = pre(h_new), computed from the rounded value as HF
    does. post, scalar (a tensor with one element), pre: each may be None and is then left out (x_next is None without
    pre). h_out may be h itself.
    CPU tensors run the torch twin. Raises ValueError for shapes or strides that do not fit.
    """
    if h.device.type == "cpu":
        return reference.sandwich(h, y, post=post, scalar=scalar, pre=pre, h_out=h_out, x_out=x_out)
    h_out = torch.empty_like(h) if h_out is None else h_out
    if pre is None:
        x_out = None
    elif x_out is None:
        x_out = torch.empty_like(h)
    for name, tensor in (("h", h), ("y", y), ("h_out", h_out), ("x_out", x_out)):
        if tensor is not None and not (tensor.is_contiguous() and tensor.numel() == h.numel()):
            raise ValueError(
                f"sandwich: {name} {tuple(tensor.shape)} must be contiguous with as many elements as h {tuple(h.shape)}"
            )
    launch_sandwich(h, y, post, scalar, pre, h_out, x_out, pdl)
    return h_out, x_out
