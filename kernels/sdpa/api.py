"""The attention entry points: check, choose, run. CPU tensors take the plain-torch twin behind the same checks."""

from __future__ import annotations

import torch

from kernels.sdpa.checks import check_call
from kernels.sdpa.reference import sdpa_reference


def sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    kv_len: int | torch.Tensor | None = None,
    window: int | None = None,
    route: object | None = None,
    out: torch.Tensor | None = None,
    workspace: object | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention, layout and semantics of torch.nn.functional.scaled_dot_product_attention."""
    check_call(query, key, value, attn_mask, dropout_p, kv_len, window, out)
    return sdpa_reference(
        query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, kv_len=kv_len, window=window, out=out
    )
