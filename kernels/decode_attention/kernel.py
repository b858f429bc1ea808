"""Split-K flash-decoding that norms, rotates and stores the new token itself.

It differs from kernels/sdpa/splitk_kernels.py in what it may assume. The only cache row that the running step writes is
the new token's, and this kernel takes that row from q|k|v, not from the cache. So every row that it reads from the
cache is older than the step: under dependent launch the keys and values are on their way before the wait, while the
q|k|v product still runs, and what is left after the wait is arithmetic on one tile that has already arrived. It saves
the launch of norm + RoPE + cache write, too; every split repeats the norm and rotation of its G query heads, which is a
few hundred numbers.

H query heads, KV key-value heads, G = H / KV, D head dim, HALF = D / 2, M query rows padded for the tensor cores. A
head's halves are kept apart, since RoPE pairs d with d + D/2; two half-length products also make two shorter chains of
dependent tensor core instructions.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.pdl import gdc_launch_dependents, gdc_wait
from kernels.sdpa.splitk_kernels import online_softmax, pinned, plan_splits, prefetch_rows, scores_of


@triton.jit(do_not_specialize=["bound", "min_rows"])
def decode_attention_kernel(
    qkv, keys, values, position, row, kv_len, inv_freq, q_weight, k_weight, v_weight, part, lse,
    k_head_stride, k_row_stride, v_head_stride, v_row_stride, bound, min_rows, scale, scaling,
    q_eps, q_offset, k_eps, k_offset, v_eps, v_offset,
    H: tl.constexpr, KV: tl.constexpr, HALF: tl.constexpr, M: tl.constexpr, BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr, PRELOAD: tl.constexpr, ONE_TILE: tl.constexpr, PREFETCH: tl.constexpr,
    VALUE_IS_KEY: tl.constexpr,
    Q_NORM: tl.constexpr, Q_WEIGHT: tl.constexpr, K_NORM: tl.constexpr, K_WEIGHT: tl.constexpr,
    V_NORM: tl.constexpr, V_WEIGHT: tl.constexpr, PRECISION: tl.constexpr, PIN: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One stretch of rows for the G query heads of one key-value head. Grid (KV, SPLITS).

    Writes part fp32 [KV, SPLITS, G, D] and lse fp32 [KV, SPLITS, G] for combine_kernel; the first split also stores
    the new row and weighs it. M > G: the new key is row G of the queries' tile, so that one norm and one rotation serve
    both. PRELOAD: the first tile is loaded into registers before the wait, and used last. ONE_TILE: no stretch is
    longer than BLOCK_N. PREFETCH: how many further rows to ask the L2 for before the wait. PIN: see `pinned`.
    """
    G: tl.constexpr = H // KV
    D: tl.constexpr = 2 * HALF
    split = tl.program_id(1)
    h = tl.program_id(0).to(tl.int64)
    if PDL:
        gdc_launch_dependents()
    # Position, row and kv_len were set at the start of the step, outside the chain of dependent launches.
    filled, _, span, chunk = plan_splits(kv_len, bound, 0, min_rows, 1, True, False, SPLITS)
    low = split * chunk
    if (low >= span) & (split > 0):
        if PDL:
            gdc_wait()
        return
    new_row = tl.load(row).to(tl.int32)
    high = tl.minimum(low + chunk, filled)
    near = tl.arange(0, BLOCK_N)
    half = tl.arange(0, HALF)
    cols = tl.arange(0, D)
    lane = tl.arange(0, M)
    key_head = keys + h * k_head_stride
    value_head = values + h * v_head_stride
    k_tile = near[:, None] * k_row_stride + half[None, :]  # [BLOCK_N, HALF]
    v_tile = near[:, None] * v_row_stride + cols[None, :]  # [BLOCK_N, D]
    # Neither rows at and beyond `high` nor the new row are read: they may hold NaN, which 0 * would not remove.
    rest = low
    if PRELOAD:
        first_ok = (low + near < high) & (low + near != new_row)
        k_base = key_head + low.to(tl.int64) * k_row_stride
        first_k_low = tl.load(k_base + k_tile, mask=first_ok[:, None], other=0.0)
        first_k_high = tl.load(k_base + HALF + k_tile, mask=first_ok[:, None], other=0.0)
        v_base = value_head + low.to(tl.int64) * v_row_stride
        first_v = tl.load(v_base + v_tile, mask=first_ok[:, None], other=0.0)
        rest = low + BLOCK_N
    if PREFETCH > 0:  # noqa: SIM102 (decided while compiling; the inner condition on the device)
        if rest < high:
            ahead = tl.minimum(high - rest, PREFETCH)
            prefetch_rows(key_head + rest.to(tl.int64) * k_row_stride, k_row_stride, ahead, D, PREFETCH)
            prefetch_rows(value_head + rest.to(tl.int64) * v_row_stride, v_row_stride, ahead, D, PREFETCH)

    # The angles and the norms' weights are constants of the step, too.
    angle = tl.load(position).to(tl.float32) * tl.load(inv_freq + half)  # [HALF]
    cos = (tl.cos(angle) * scaling)[None, :]
    sin = (tl.sin(angle) * scaling)[None, :]
    weighted = ((lane < G) & Q_WEIGHT) | ((lane == G) & K_WEIGHT)
    w_ptr = tl.where(lane < G, q_weight, k_weight)[:, None] + half[None, :]
    w_low = tl.load(w_ptr, mask=weighted[:, None], other=1.0)  # [M, HALF]
    w_high = tl.load(w_ptr + HALF, mask=weighted[:, None], other=1.0)
    if PDL:
        gdc_wait()

    heads = tl.where(lane < G, h * G + lane, H + h)
    ptr = qkv + heads[:, None] * D + half[None, :]
    a = tl.load(ptr, mask=(lane <= G)[:, None], other=0.0).to(tl.float32)  # [M, HALF]
    b = tl.load(ptr + HALF, mask=(lane <= G)[:, None], other=0.0).to(tl.float32)
    if Q_NORM or K_NORM:
        norm = tl.rsqrt(tl.sum(a * a + b * b, 1) / D + tl.where(lane < G, q_eps, k_eps))
        if not Q_NORM:
            norm = tl.where(lane < G, 1.0, norm)
        if not K_NORM:
            norm = tl.where(lane < G, norm, 1.0)
        offset = tl.where(weighted, tl.where(lane < G, q_offset, k_offset), 0.0)
        a = a * norm[:, None] * (offset[:, None] + w_low.to(tl.float32))
        b = b * norm[:, None] * (offset[:, None] + w_high.to(tl.float32))
    kind = keys.dtype.element_ty
    q_low = (a * cos - b * sin).to(kind)
    q_high = (b * cos + a * sin).to(kind)

    LOG2E: tl.constexpr = 1.4426950408889634
    unit = scale * LOG2E
    highest = tl.full([M], -float("inf"), tl.float32)
    sums = tl.zeros([M, BLOCK_N], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    if split == 0:
        v_new = qkv + (H + h) * D
        if not VALUE_IS_KEY:
            v_new += KV * D
        value = tl.load(v_new + cols).to(tl.float32)  # [D]
        if V_NORM:
            value = value * tl.rsqrt(tl.sum(value * value, 0) / D + v_eps)
            if V_WEIGHT:
                value = value * (v_offset + tl.load(v_weight + cols).to(tl.float32))
        value = value.to(kind)
        tl.store(value_head + new_row.to(tl.int64) * v_row_stride + cols, value)
        k_ptr = key_head + new_row.to(tl.int64) * k_row_stride + (lane * 0)[:, None] + half[None, :]
        tl.store(k_ptr, q_low, mask=(lane == G)[:, None])
        tl.store(k_ptr + HALF, q_high, mask=(lane == G)[:, None])
        alone = tl.where((lane == G)[None, :], scores_of(q_low, q_high, q_low, q_high, True, PIN, PRECISION), 0.0)
        highest = tl.sum(alone, 1)
        sums += tl.where(near == 0, 1.0, 0.0)[None, :]
        acc += value.to(tl.float32)[None, :]
    if not (PRELOAD and ONE_TILE):
        k_base = key_head + rest.to(tl.int64) * k_row_stride
        v_base = value_head + rest.to(tl.int64) * v_row_stride
        for start in range(rest, high, BLOCK_N):
            ok = (start + near < high) & (start + near != new_row)
            k_low = tl.load(k_base + k_tile, mask=ok[:, None], other=0.0)
            k_high = tl.load(k_base + HALF + k_tile, mask=ok[:, None], other=0.0)
            v = tl.load(v_base + v_tile, mask=ok[:, None], other=0.0)
            # The queries take their way to the tensor cores in every turn: kept ready for them, they would fill up to
            # half the registers.
            now_low, now_high = pinned(q_low, PIN), pinned(q_high, PIN)
            scores = scores_of(now_low, now_high, k_low, k_high, True, PIN, PRECISION)
            scores = tl.where(ok[None, :], scores, -float("inf"))
            highest, sums, acc = online_softmax(scores, v, unit, highest, sums, acc, PRECISION)
            k_base += BLOCK_N * k_row_stride
            v_base += BLOCK_N * v_row_stride
    if PRELOAD:
        k_low, k_high, v = pinned(first_k_low, PIN), pinned(first_k_high, PIN), pinned(first_v, PIN)
        scores = tl.where(
            first_ok[None, :], scores_of(q_low, q_high, k_low, k_high, True, PIN, PRECISION), -float("inf")
        )
        highest, sums, acc = online_softmax(scores, v, unit, highest, sums, acc, PRECISION)

    total = tl.sum(sums, 1)
    solid = tl.where(total == 0.0, 1.0, total)
    acc = acc * (1.0 / solid)[:, None]
    part += (h * SPLITS + split) * (G * D)
    lse += (h * SPLITS + split) * G
    tl.store(part + lane[:, None] * D + cols[None, :], acc, mask=(lane < G)[:, None])
    tl.store(lse + lane, highest * unit + tl.log2(solid), mask=lane < G)
