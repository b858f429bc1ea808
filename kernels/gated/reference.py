"""Plain torch twins of the gated activation, fp32 inside."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F

Activation = Literal["gelu_tanh", "silu"]


def activate(gate: torch.Tensor, activation: Activation) -> torch.Tensor:
    """act(gate) in fp32. "gelu_tanh" is HF's gelu_pytorch_tanh: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    if activation == "gelu_tanh":
        return F.gelu(gate.float(), approximate="tanh")
    if activation == "silu":
        return F.silu(gate.float())
    raise ValueError(f"activation: found {activation!r}, expected 'gelu_tanh' or 'silu'")


def gated(gate_up: torch.Tensor, *, activation: Activation, out: torch.Tensor | None = None) -> torch.Tensor:
    """Twin of kernels.gated.gated."""
    gate, up = gate_up.chunk(2, dim=-1)
    out = torch.empty_like(gate, memory_format=torch.contiguous_format) if out is None else out
    return out.copy_(activate(gate, activation) * up.float())
