"""Everything between the q|k|v product and attention, in one launch: per-head norms, RoPE, cache write.

One program a (token, head). A head's halves are loaded apart, since RoPE pairs d with d + D/2. Angles are taken in
fp32 from the inverse frequencies and the position on the device, so a captured graph serves every position; a
proportional RoPE (Gemma 4 full layers) is plain zeros in inv_freq.
Letters: T tokens, H query heads, KV key-value heads, D head dim, C cache capacity.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.norm.spec import Norm, norm_operands
from kernels.pdl import gdc_launch_dependents, gdc_wait, launch_options
from kernels.rope import reference


@triton.jit
def _gain(weight, offset, half, mask, HALF: tl.constexpr, WEIGHT: tl.constexpr):
    """offset + weight of one head as two fp32 halves; ones without a weight."""
    low = tl.full(half.shape, 1.0, tl.float32)
    high = low
    if WEIGHT:
        low = offset + tl.load(weight + half, mask=mask, other=0.0).to(tl.float32)
        high = offset + tl.load(weight + HALF + half, mask=mask, other=0.0).to(tl.float32)
    return low, high


# A prompt's length shows in these two: specialised, some lengths would compile the kernel anew.
@triton.jit(do_not_specialize=["capacity", "first_row"])
def _qk_norm_rope_kernel(
    qkv, q_out, keys, values, position, inv_freq, q_weight, k_weight, v_weight,
    row_stride, q_head_stride, q_token_stride, k_head_stride, k_row_stride, v_head_stride, v_row_stride,
    capacity, first_row, scaling, q_eps, q_offset, k_eps, k_offset, v_eps, v_offset,
    H: tl.constexpr, KV: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, RING: tl.constexpr,
    ROW_GIVEN: tl.constexpr,
    VALUE_IS_KEY: tl.constexpr, Q_NORM: tl.constexpr, Q_WEIGHT: tl.constexpr, K_NORM: tl.constexpr,
    K_WEIGHT: tl.constexpr, V_NORM: tl.constexpr, V_WEIGHT: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    half = tl.arange(0, BLOCK)
    mask = half < HALF
    if PDL:
        gdc_launch_dependents()
    # Constants of the model come before the wait, so that only q|k|v and the position are on the critical path.
    freq = tl.load(inv_freq + half, mask=mask, other=0.0)  # [D/2]
    if head < H:
        gain_low, gain_high = _gain(q_weight, q_offset, half, mask, HALF, Q_WEIGHT)
        eps = q_eps
    elif head < H + KV:
        gain_low, gain_high = _gain(k_weight, k_offset, half, mask, HALF, K_WEIGHT)
        eps = k_eps
    else:
        gain_low, gain_high = _gain(v_weight, v_offset, half, mask, HALF, V_WEIGHT)
        eps = v_eps
    if PDL:
        gdc_wait()
    at = tl.load(position).to(tl.int64) + token
    # value_is_key: programs H + KV ... read the raw key of their head again.
    source = head
    if VALUE_IS_KEY:
        source = tl.where(head >= H + KV, head - KV, head)
    base = qkv + token * row_stride + source.to(tl.int64) * (2 * HALF)
    low = tl.load(base + half, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(base + HALF + half, mask=mask, other=0.0).to(tl.float32)
    normed = ((head < H) & Q_NORM) | ((head >= H) & (head < H + KV) & K_NORM) | ((head >= H + KV) & V_NORM)
    scale = tl.rsqrt(tl.sum(low * low + high * high, 0) / (2 * HALF) + eps)
    scale = tl.where(normed, scale, 1.0)
    low = low * scale * gain_low
    high = high * scale * gain_high
    row = at
    if RING:
        row = at % capacity
    if ROW_GIVEN:
        row = first_row + token
    if head < H + KV:
        angle = at.to(tl.float32) * freq
        cos = tl.cos(angle) * scaling
        sin = tl.sin(angle) * scaling
        turned = low * cos - high * sin
        high = high * cos + low * sin
        low = turned
    if head < H:
        target = q_out + head.to(tl.int64) * q_head_stride + token * q_token_stride
    elif head < H + KV:
        target = keys + (head - H).to(tl.int64) * k_head_stride + row * k_row_stride
    else:
        target = values + (head - H - KV).to(tl.int64) * v_head_stride + row * v_row_stride
    tl.store(target + half, low.to(q_out.dtype.element_ty), mask=mask)
    tl.store(target + HALF + half, high.to(q_out.dtype.element_ty), mask=mask)


def launch_qk_norm_rope(
    qkv: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    q_out: torch.Tensor,
    *,
    position: torch.Tensor,
    inv_freq: torch.Tensor,
    ring: bool,
    q_norm: Norm | None,
    k_norm: Norm | None,
    v_norm: Norm | None,
    value_is_key: bool,
    attention_scaling: float,
    pdl: bool,
    first_row: int | None = None,
) -> None:
    """Run the Triton kernel (also under the interpreter); arguments as in the entry point, q_out [1, H, T, D] given."""
    _, H, tokens, D = q_out.shape
    KV, capacity = key_cache.shape[1], key_cache.shape[2]
    q_weight, q_eps, q_offset, q_on, q_has = norm_operands(q_norm, inv_freq)
    k_weight, k_eps, k_offset, k_on, k_has = norm_operands(k_norm, inv_freq)
    v_weight, v_eps, v_offset, v_on, v_has = norm_operands(v_norm, inv_freq)
    block = triton.next_power_of_2(D // 2)
    _qk_norm_rope_kernel[(tokens, H + 2 * KV)](
        qkv, q_out, key_cache, value_cache, position, inv_freq, q_weight, k_weight, v_weight,
        qkv.shape[-1], q_out.stride(1), q_out.stride(2), key_cache.stride(1), key_cache.stride(2),
        value_cache.stride(1), value_cache.stride(2), capacity, first_row or 0, attention_scaling,
        q_eps, q_offset, k_eps, k_offset, v_eps, v_offset, H, KV, D // 2, block, ring, first_row is not None,
        value_is_key,
        q_on, q_has, k_on, k_has, v_on, v_has, pdl,
        num_warps=max(1, block // 256), **launch_options(pdl),
    )  # fmt: skip


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
    """Norm and rotate q and k, norm v, write k and v into their cache rows; returns q [1, H, T, D].

    qkv [..., (H + 2 KV) D] contiguous, T rows in all: packed q | k | v heads; with value_is_key [..., (H + KV) D] and
    v is the raw k. key_cache, value_cache [1, KV, C, D] of one dtype with q, last stride 1. position: int32/int64
    device tensor with one element, the absolute position of the first token; token t stands at position + t and goes
    to row (position + t) % C of a ring (T <= C), else to row position + t, which the caller keeps below C; or, with
    first_row (host side, for prefill into a buffer of its own), to row first_row + t. inv_freq: fp32 [D/2].
    attention_scaling: factor of cos and sin (HF's rope types). Norms may be None.
    CPU tensors run the torch twin. Raises ValueError when shapes do not fit.
    """
    _, num_kv_heads, capacity, head_dim = key_cache.shape
    tokens = qkv.numel() // qkv.shape[-1]
    heads = num_heads + num_kv_heads * (1 if value_is_key else 2)
    if qkv.shape[-1] != heads * head_dim or not qkv.is_contiguous():
        raise ValueError(
            f"qk_norm_rope_cache_write: qkv {tuple(qkv.shape)} must be contiguous rows of {heads} heads x {head_dim}"
        )
    beyond = (ring and tokens > capacity) or (first_row is not None and first_row + tokens > capacity)
    if key_cache.shape != value_cache.shape or beyond or inv_freq.numel() * 2 != head_dim:
        raise ValueError(
            f"qk_norm_rope_cache_write: caches {tuple(key_cache.shape)} and {tuple(value_cache.shape)}, {tokens} "
            f"tokens and {inv_freq.numel()} inverse frequencies do not fit together"
        )
    if qkv.device.type == "cpu":
        return reference.qk_norm_rope_cache_write(
            qkv, key_cache, value_cache, position=position, inv_freq=inv_freq, num_heads=num_heads, ring=ring,
            q_norm=q_norm, k_norm=k_norm, v_norm=v_norm, value_is_key=value_is_key,
            attention_scaling=attention_scaling, q_out=q_out, first_row=first_row,
        )  # fmt: skip
    if q_out is None:
        q_out = qkv.new_empty((1, num_heads, tokens, head_dim))
    launch_qk_norm_rope(
        qkv, key_cache, value_cache, q_out, position=position, inv_freq=inv_freq, ring=ring,
        q_norm=q_norm, k_norm=k_norm, v_norm=v_norm, value_is_key=value_is_key,
        attention_scaling=attention_scaling, pdl=pdl, first_row=first_row,
    )  # fmt: skip
    return q_out
