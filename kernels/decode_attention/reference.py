"""Plain torch twin of decode_attention: the twins of norm + RoPE + cache write and of attention, in turn."""

from __future__ import annotations

import torch

from kernels.norm.spec import Norm
from kernels.rope.reference import qk_norm_rope_cache_write
from kernels.sdpa.reference import sdpa_reference


def decode_attention(
    qkv: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    *,
    position: torch.Tensor,
    row: torch.Tensor,
    kv_len: torch.Tensor,
    inv_freq: torch.Tensor,
    num_heads: int,
    scale: float,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
    v_norm: Norm | None = None,
    value_is_key: bool = False,
    attention_scaling: float = 1.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Twin of kernels.decode_attention.decode_attention."""
    query = qk_norm_rope_cache_write(
        qkv, key_cache, value_cache, position=position, inv_freq=inv_freq, num_heads=num_heads, ring=False,
        first_row=int(row), q_norm=q_norm, k_norm=k_norm, v_norm=v_norm, value_is_key=value_is_key,
        attention_scaling=attention_scaling,
    )  # fmt: skip
    return sdpa_reference(
        query, key_cache, value_cache, None, is_causal=False, scale=scale, kv_len=kv_len, window=None, out=out
    )
