"""act(gate) * up over rows of [T, 2F]: the prefill form; decode has it in the epilogue of the matvec."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.gated import reference
from kernels.gated.reference import Activation

# Codes the kernels switch on at compile time.
ACTIVATIONS: dict[Activation | None, int] = {None: 0, "gelu_tanh": 1, "silu": 2}


@triton.jit
def activate(gate, ACTIVATION: tl.constexpr):
    """fp32 activation. 0.5 z (1 + tanh(u)) is z * sigmoid(2 u), with u = sqrt(2 / pi) (z + 0.044715 z^3)."""
    if ACTIVATION == 1:
        value = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        value = gate * tl.sigmoid(gate)
    return value


@triton.jit
def _gated_kernel(gate_up, out, F, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < F
    gate = tl.load(gate_up + row * 2 * F + cols, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * F + F + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * F + cols, (activate(gate, ACTIVATION) * up).to(out.dtype.element_ty), mask=mask)


def launch_gated(gate_up: torch.Tensor, activation: Activation, out: torch.Tensor) -> None:
    """Run the Triton kernel on contiguous tensors (also under the interpreter)."""
    F = gate_up.shape[-1] // 2
    block = min(2048, triton.next_power_of_2(F))
    grid = (gate_up.numel() // (2 * F), triton.cdiv(F, block))
    _gated_kernel[grid](gate_up, out, F, ACTIVATIONS[activation], block, num_warps=max(1, min(8, block // 256)))


def gated(gate_up: torch.Tensor, *, activation: Activation, out: torch.Tensor | None = None) -> torch.Tensor:
    """act(gate) * up for gate_up [..., 2F] = gate|up (contiguous) -> [..., F] of the same dtype.

    CPU tensors run the twin. Raises ValueError for an unknown activation or tensors that are not contiguous.
    """
    if gate_up.device.type == "cpu":
        return reference.gated(gate_up, activation=activation, out=out)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: found {activation!r}, expected 'gelu_tanh' or 'silu'")
    if out is None:
        out = gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))
    if not (gate_up.is_contiguous() and out.is_contiguous()):
        raise ValueError(f"gated: gate_up {gate_up.stride()} and out {out.stride()} must be contiguous")
    launch_gated(gate_up, activation, out)
    return out
