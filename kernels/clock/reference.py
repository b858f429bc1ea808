"""Plain torch twins of the clock kernels."""

from __future__ import annotations

import torch


def locate(
    position: torch.Tensor, capacities: torch.Tensor, here: torch.Tensor, rows: torch.Tensor, kv_lens: torch.Tensor
) -> None:
    """Twin of kernels.clock.locate."""
    here.copy_(position)
    torch.remainder(position, capacities, out=rows)
    kv_lens.copy_(torch.minimum(position + 1, capacities))


def advance(
    sampled: torch.Tensor,
    highest: torch.Tensor,
    token: torch.Tensor,
    position: torch.Tensor,
    index: torch.Tensor,
    emitted: torch.Tensor,
    *,
    not_a_token: int,
) -> None:
    """Twin of kernels.clock.advance."""
    emitted.copy_(torch.where(highest.isnan(), not_a_token, sampled))
    token.copy_(emitted.clamp(min=0).view_as(token))
    position.add_(1)
    index.add_(1)
