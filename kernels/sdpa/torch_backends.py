"""torch's own attention backends, by the names that routes use for them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "torch_flash": SDPBackend.FLASH_ATTENTION,
    "torch_cudnn": SDPBackend.CUDNN_ATTENTION,
    "torch_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "torch_math": SDPBackend.MATH,
}


def run_torch(
    name: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    *,
    is_causal: bool,
    scale: float,
) -> torch.Tensor:
    """torch's scaled_dot_product_attention on the backend called `name` ("torch_default": torch chooses).

    Causal alignment is torch's, top-left: the router asks for it only when L_q == L_kv.
    """
    grouped = query.shape[1] != key.shape[1]

    def call() -> torch.Tensor:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, is_causal=is_causal, scale=scale, enable_gqa=grouped
        )

    if name == "torch_default":
        return call()
    with sdpa_kernel(BACKENDS[name]):
        return call()
