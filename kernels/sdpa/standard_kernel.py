"""Flash attention on the device: any number of queries, causal and windowed, sweeping only the keys that a tile sees.

B batch, H query heads, K key-value heads, G = H / K, D head dim. The L_q * G queries that share a key-value head are
packed into rows (row r is query r // G of head r % G), so grouped queries read each key once.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sweep(
    acc,
    total,
    highest,
    q,
    key,
    value,
    b,
    h,
    k_base,
    v_base,
    m_ptr,
    low,
    high,
    filled,
    window,
    position,
    row_ok,
    scale,
    unit,
    stride_kl,
    stride_vl,
    stride_mn,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    EDGE: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    MASK_KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
):
    """Online softmax over keys low..high. EDGE: some of them may be hidden or beyond the valid rows."""
    cols = tl.arange(0, D_PAD)
    near = tl.arange(0, BLOCK_N)
    if not TMA:
        begin = tl.full((), 0, tl.int64) + low
        k_base += begin * stride_kl
        v_base += begin * stride_vl
    k_tile = near[:, None] * stride_kl + cols[None, :]  # [BLOCK_N, D_PAD]
    v_tile = near[:, None] * stride_vl + cols[None, :]
    for start in range(low, high, BLOCK_N):
        keys = start + near
        ok = keys < filled
        if TMA:
            k = key.load([b, h, start, 0]).reshape(BLOCK_N, D_PAD)
        elif EDGE:
            loaded = ok[:, None] & (cols < D)[None, :]
            k = tl.load(k_base + k_tile, mask=loaded, other=0.0)
        elif D_PAD > D:
            k = tl.load(k_base + k_tile, mask=(cols < D)[None, :], other=0.0)
        else:
            k = tl.load(k_base + k_tile)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        if EDGE:
            seen = ok[None, :]
            if CAUSAL:
                seen = seen & (keys[None, :] <= position[:, None])
            if WINDOWED:
                seen = seen & (keys[None, :] > position[:, None] - window)
            if MASK_KIND > 0:
                given = tl.load(
                    m_ptr + keys[None, :].to(tl.int64) * stride_mn, mask=row_ok[:, None] & ok[None, :], other=0
                )
                if MASK_KIND == 1:
                    seen = seen & (given != 0)
                else:
                    scores = scores * scale + given.to(tl.float32)
            scores = tl.where(seen, scores, -float("inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        base = higher
        if EDGE:
            base = tl.where(higher == -float("inf"), 0.0, higher)
        weights = tl.exp2(scores * unit - (base * unit)[:, None])
        decay = tl.exp2((highest - base) * unit)
        total = total * decay + tl.sum(weights, 1)
        acc = acc * decay[:, None]
        if TMA:
            v = value.load([b, h, start, 0]).reshape(BLOCK_N, D_PAD)
        elif EDGE:
            v = tl.load(v_base + v_tile, mask=ok[:, None] & (cols < D)[None, :], other=0.0)
        elif D_PAD > D:
            v = tl.load(v_base + v_tile, mask=(cols < D)[None, :], other=0.0)
        else:
            v = tl.load(v_base + v_tile)
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
        highest = higher
        if not TMA:
            k_base += BLOCK_N * stride_kl
            v_base += BLOCK_N * stride_vl
    return acc, total, highest


@triton.jit(do_not_specialize=["bound", "window", "L_q"])
def standard_kernel(
    query,
    key,
    value,
    out,
    mask,
    kv_len,
    bound,
    window,
    scale,
    L_q,
    K,
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kh,
    stride_kl,
    stride_vb,
    stride_vh,
    stride_vl,
    stride_ob,
    stride_oh,
    stride_ol,
    stride_mb,
    stride_mh,
    stride_ml,
    stride_mn,
    G: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_KV_LEN: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    MASK_KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    TMA: tl.constexpr,
):
    """BLOCK_M packed query rows of one (batch, key-value head). Grid (tiles of rows, B * K), longest sweeps first.

    WINDOWED implies CAUSAL. TMA: key and value are descriptors of blocks [1, 1, BLOCK_N, D_PAD] that end at `bound`.
    MASK_KIND: 0 none, 1 boolean (as uint8), 2 additive. `scale` > 0.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    b = (tl.program_id(1) // K).to(tl.int64)
    h = (tl.program_id(1) % K).to(tl.int64)
    filled = bound
    if HAS_KV_LEN:
        filled = tl.minimum(tl.load(kv_len).to(tl.int32), bound)

    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    row_ok = rows < L_q * G
    lane = rows % G
    turn = (rows // G).to(tl.int64)
    cols = tl.arange(0, D_PAD)
    col_ok = (cols < D)[None, :]
    q_ptr = query + b * stride_qb + (h * G + lane)[:, None] * stride_qh + turn[:, None] * stride_ql + cols[None, :]
    q = tl.load(q_ptr, mask=row_ok[:, None] & col_ok, other=0.0)  # [BLOCK_M, D_PAD]
    k_base = key
    v_base = value
    if not TMA:
        k_base += b * stride_kb + h * stride_kh
        v_base += b * stride_vb + h * stride_vh
    m_ptr = mask + b * stride_mb + (h * G + lane)[:, None] * stride_mh + turn[:, None] * stride_ml
    position = filled - L_q + turn.to(tl.int32)

    # Keys low..high are visible to some row of the tile, keys inner_low..inner_high to every row.
    first = filled - L_q + (tile * BLOCK_M) // G
    last = filled - L_q + tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // G, L_q - 1)
    low = 0
    high = filled
    inner_low = 0
    inner_high = filled
    if CAUSAL:
        high = tl.minimum(tl.maximum(last + 1, 0), filled)
        inner_high = tl.maximum(first + 1, 0)
    if WINDOWED:
        low = tl.maximum(first + 1 - window, 0) // BLOCK_N * BLOCK_N
        inner_low = tl.maximum(last + 1 - window, 0)
    inner_low = tl.cdiv(inner_low, BLOCK_N) * BLOCK_N
    inner_high = tl.maximum(tl.minimum(inner_high, high) // BLOCK_N * BLOCK_N, inner_low)
    if MASK_KIND > 0:
        inner_low = low
        inner_high = low

    # Scores are scaled inside the exponent, by one fused multiply-add; an additive mask needs them scaled before.
    unit = scale * 1.4426950408889634
    if MASK_KIND == 2:
        unit = 1.4426950408889634
    highest = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D_PAD], tl.float32)
    if WINDOWED:
        acc, total, highest = _sweep(
            acc,
            total,
            highest,
            q,
            key,
            value,
            tl.program_id(1) // K,
            tl.program_id(1) % K,
            k_base,
            v_base,
            m_ptr,
            low,
            inner_low,
            filled,
            window,
            position,
            row_ok,
            scale,
            unit,
            stride_kl,
            stride_vl,
            stride_mn,
            D,
            D_PAD,
            BLOCK_N,
            True,
            CAUSAL,
            WINDOWED,
            MASK_KIND,
            PRECISION,
            TMA,
        )
    if MASK_KIND == 0:
        acc, total, highest = _sweep(
            acc,
            total,
            highest,
            q,
            key,
            value,
            tl.program_id(1) // K,
            tl.program_id(1) % K,
            k_base,
            v_base,
            m_ptr,
            inner_low,
            inner_high,
            filled,
            window,
            position,
            row_ok,
            scale,
            unit,
            stride_kl,
            stride_vl,
            stride_mn,
            D,
            D_PAD,
            BLOCK_N,
            False,
            CAUSAL,
            WINDOWED,
            MASK_KIND,
            PRECISION,
            TMA,
        )
    acc, total, highest = _sweep(
        acc,
        total,
        highest,
        q,
        key,
        value,
        tl.program_id(1) // K,
        tl.program_id(1) % K,
        k_base,
        v_base,
        m_ptr,
        inner_high,
        high,
        filled,
        window,
        position,
        row_ok,
        scale,
        unit,
        stride_kl,
        stride_vl,
        stride_mn,
        D,
        D_PAD,
        BLOCK_N,
        True,
        CAUSAL,
        WINDOWED,
        MASK_KIND,
        PRECISION,
        TMA,
    )
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    o_ptr = out + b * stride_ob + (h * G + lane)[:, None] * stride_oh + turn[:, None] * stride_ol + cols[None, :]
    tl.store(o_ptr, acc.to(out.dtype.element_ty), mask=row_ok[:, None] & col_ok)
