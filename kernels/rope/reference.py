"""Plain torch twin of qk-norm + RoPE + cache write, fp32 inside.

Letters: T tokens, H query heads, KV key-value heads, D head dim, C cache capacity.
"""

from __future__ import annotations

import torch

from kernels.norm.reference import normalise
from kernels.norm.spec import Norm


def rotate(x: torch.Tensor, positions: torch.Tensor, inv_freq: torch.Tensor, scaling: float) -> torch.Tensor:
    """HF's half-rotation RoPE in fp32: x [T, heads, D], positions [T], inv_freq [D/2] -> [T, heads, D]."""
    angle = positions.float()[:, None] * inv_freq.float()[None, :]  # [T, D/2]
    cos, sin = (angle.cos() * scaling)[:, None, :], (angle.sin() * scaling)[:, None, :]
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def qk_norm_rope_cache_write(
    qkv: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    *,
    position: torch.Tensor,
    inv_freq: torch.Tensor,
    num_heads: int,
    ring: bool,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
    v_norm: Norm | None = None,
    value_is_key: bool = False,
    attention_scaling: float = 1.0,
    q_out: torch.Tensor | None = None,
    pdl: bool = False,
    first_row: int | None = None,
) -> torch.Tensor:
    """Twin of kernels.rope.qk_norm_rope_cache_write."""
    _, num_kv_heads, capacity, head_dim = key_cache.shape
    tokens = qkv.numel() // qkv.shape[-1]
    heads = qkv.reshape(tokens, -1, head_dim)
    q, k = heads[:, :num_heads], heads[:, num_heads : num_heads + num_kv_heads]
    v = k if value_is_key else heads[:, num_heads + num_kv_heads :]
    positions = position.reshape(1).long() + torch.arange(tokens, device=qkv.device)
    q = rotate(q.float() if q_norm is None else normalise(q, q_norm), positions, inv_freq, attention_scaling)
    k = rotate(k.float() if k_norm is None else normalise(k, k_norm), positions, inv_freq, attention_scaling)
    v = v.float() if v_norm is None else normalise(v, v_norm)
    rows = positions % capacity if ring else positions
    if first_row is not None:
        rows = first_row + torch.arange(tokens, device=qkv.device)
    key_cache[0][:, rows] = k.transpose(0, 1).to(key_cache.dtype)
    value_cache[0][:, rows] = v.transpose(0, 1).to(value_cache.dtype)
    if q_out is None:
        q_out = torch.empty((1, num_heads, tokens, head_dim), dtype=qkv.dtype, device=qkv.device)
    q_out[0].copy_(q.transpose(0, 1))
    return q_out
