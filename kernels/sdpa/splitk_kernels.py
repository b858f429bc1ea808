"""Split-K flash-decoding on the device: few queries, keys and values spread over the whole GPU.

B batch, H query heads, K key-value heads, G = H / K, R = L_q * G query rows that share one key-value head, D head dim.
A program takes one (batch, key-value head) and one stretch of keys; how long a stretch is follows from the valid
length, read on the device, and from the grid, which the host sizes by multiprocessors. So a captured graph serves
every length, and an allocated but empty row costs nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.pdl import gdc_launch_dependents, gdc_wait


@triton.jit
def plan_splits(
    kv_len,
    bound,
    window,
    min_rows,
    L_Q: tl.constexpr,
    HAS_KV_LEN: tl.constexpr,
    WINDOWED: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """(valid rows, first row any query sees, rows to cover, rows a split takes): the same in every program.

    SPLITS is a constant because the first load of keys waits for this: a division by a variable would show.
    """
    filled = bound
    if HAS_KV_LEN:
        # volatile: the load before a dependent launch's wait must not stand in for the one after it
        filled = tl.minimum(tl.load(kv_len, volatile=True).to(tl.int32), bound)
    first = 0
    if WINDOWED:
        first = tl.maximum(filled - L_Q + 1 - window, 0)
    span = filled - first
    return filled, first, span, tl.maximum(tl.cdiv(span, SPLITS * 16) * 16, min_rows)


@triton.jit
def prefetch_rows(base, stride_l, valid, D: tl.constexpr, ROWS: tl.constexpr):
    """Ask the L2 for the first ROWS of `valid` > 0 rows of D elements, a line of 128 bytes a request."""
    PER_LINE: tl.constexpr = 128 // (base.dtype.element_ty.primitive_bitwidth // 8)
    rows = tl.minimum(tl.arange(0, ROWS), valid - 1)
    LINES: tl.constexpr = (D + PER_LINE - 1) // PER_LINE
    lines = tl.arange(0, LINES) * PER_LINE
    ptr = base + rows[:, None].to(tl.int64) * stride_l + lines[None, :]
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [ptr.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _prefetch_split(key, value, stride_kl, stride_vl, low, high, D: tl.constexpr, ROWS: tl.constexpr):
    """Ask the L2 for the first ROWS keys and values of the stretch [low, high), which may be empty."""
    if low < high:
        prefetch_rows(key + low.to(tl.int64) * stride_kl, stride_kl, high - low, D, ROWS)
        prefetch_rows(value + low.to(tl.int64) * stride_vl, stride_vl, high - low, D, ROWS)


@triton.jit
def pinned(tile, PIN: tl.constexpr):
    """The tile, tied to this point of the program.

    A copy in assembly, which costs nothing: without it the compiler moves the tile's way through shared memory up to
    its load, and every load then waits for the one before it. Off in the interpreter, which knows no assembly.
    """
    if PIN:
        bits: tl.constexpr = tile.dtype.primitive_bitwidth
        if bits == 16:
            tile = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [tile], tile.dtype, is_pure=False, pack=2)
        else:
            tile = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [tile], tile.dtype, is_pure=False, pack=1)
    return tile


@triton.jit
def scores_of(q_low, q_high, k_low, k_high, HALVES: tl.constexpr, PIN: tl.constexpr, PRECISION: tl.constexpr):
    """q . k [M, N]. Heads come in halves, so that two chains of dependent tensor core instructions run side by side.

    Pinned, or the compiler would make one chain of them again: the second product on top of the first.
    """
    scores = tl.dot(q_low, tl.trans(k_low), input_precision=PRECISION)
    if HALVES:
        scores = pinned(scores, PIN) + pinned(tl.dot(q_high, tl.trans(k_high), input_precision=PRECISION), PIN)
    return scores


@triton.jit
def online_softmax(scores, v, unit, highest, sums, acc, PRECISION: tl.constexpr):
    """One tile's scores [M, N] (-inf where unseen) and values [N, D] into the running (maximum, sums, weighted values).

    `sums` [M, N] is summed over keys after the last tile: one reduction less in every turn.
    """
    higher = tl.maximum(highest, tl.max(scores, 1))
    base = tl.where(higher == -float("inf"), 0.0, higher)  # a row that sees nothing yet: weights exp2(-inf) = 0
    weights = tl.exp2(scores * unit - (base * unit)[:, None])
    decay = tl.exp2((highest - base) * unit)
    sums = sums * decay[:, None] + weights
    acc = acc * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    return higher, sums, acc


@triton.jit
def _merge(
    part,
    lse,
    out,
    splits,
    row0,
    col0,
    stride_out_head,
    stride_out_row,
    G: tl.constexpr,
    R: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Merge the splits of ROWS query rows and COLS columns; part [splits, R, D], lse [splits, R] of one head."""
    rows = row0 + tl.arange(0, ROWS)
    cols = col0 + tl.arange(0, COLS)
    highest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, COLS], tl.float32)
    for start in range(0, splits, AT_ONCE):
        at = start + tl.arange(0, AT_ONCE)
        ok = (at < splits)[:, None] & (rows < R)[None, :]  # [AT_ONCE, ROWS]
        offset = at[:, None] * R + rows[None, :]
        # .cg: other blocks wrote these; both loads are issued before either is used
        tile = tl.load(
            part + offset[:, :, None] * D + cols[None, None, :], mask=ok[:, :, None], other=0.0, cache_modifier=".cg"
        )
        level = tl.load(lse + offset, mask=ok, other=-float("inf"), cache_modifier=".cg")
        higher = tl.maximum(highest, tl.max(level, 0))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        weight = tl.exp2(level - base[None, :])
        decay = tl.exp2(highest - base)
        acc = acc * decay[:, None] + tl.sum(tile.to(tl.float32) * weight[:, :, None], 0)
        total = total * decay + tl.sum(weight, 0)
        highest = higher
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    target = out + (rows % G)[:, None].to(tl.int64) * stride_out_head + (rows // G)[:, None] * stride_out_row
    tl.store(target + cols[None, :], acc.to(out.dtype.element_ty), mask=(rows < R)[:, None])


@triton.jit(do_not_specialize=["bound", "window", "min_rows"])
def splitk_kernel(
    query,
    key,
    value,
    out,
    mask,
    kv_len,
    part,
    lse,
    arrivals,
    bound,
    window,
    min_rows,
    nothing,
    scale,
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
    L_Q: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_KV_LEN: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    MASK_KIND: tl.constexpr,
    FUSED: tl.constexpr,
    REDUCERS: tl.constexpr,
    MERGE_ROWS: tl.constexpr,
    MERGE_AT_ONCE: tl.constexpr,
    DEPENDENT: tl.constexpr,
    OVERLAP: tl.constexpr,
    PREFETCH: tl.constexpr,
    SETTLED: tl.constexpr,
    LATE_QUERY: tl.constexpr,
    PIN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One stretch of keys for the R = L_Q * G query rows of one key-value head. Grid (K, SPLITS, B).

    Programs beyond the last stretch leave at once. `arrivals` int32 [B * K, 2] is zero between launches.
    MASK_KIND: 0 none, 1 boolean (as uint8), 2 additive. `scale` > 0. SETTLED: kv_len may be relied on before the wait.
    PIN: see `pinned`.
    """
    R: tl.constexpr = L_Q * G
    LOG2E: tl.constexpr = 1.4426950408889634
    split = tl.program_id(1)
    h = tl.program_id(0).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    key += b * stride_kb + h * stride_kh
    value += b * stride_vb + h * stride_vh
    EARLY: tl.constexpr = DEPENDENT and SETTLED  # all but the loads themselves comes before the wait
    if DEPENDENT and not EARLY:
        if PREFETCH > 0:
            # kv_len may still be the last step's: good enough for a guess at what to prefetch, and for nothing else.
            filled, first, span, chunk = plan_splits(kv_len, bound, window, min_rows, L_Q, HAS_KV_LEN, WINDOWED, SPLITS)
            low = first + split * chunk
            high = tl.minimum(low + chunk, filled)
            _prefetch_split(key, value, stride_kl, stride_vl, low, high, D, PREFETCH)
        gdc_wait()
    if OVERLAP and not EARLY:
        gdc_launch_dependents()
    filled, first, span, chunk = plan_splits(kv_len, bound, window, min_rows, L_Q, HAS_KV_LEN, WINDOWED, SPLITS)
    if (split * chunk >= span) & (split > 0):
        if EARLY:
            gdc_wait()
        return
    low = first + split * chunk
    high = tl.minimum(low + chunk, filled)
    if EARLY and PREFETCH > 0:
        _prefetch_split(key, value, stride_kl, stride_vl, low, high, D, PREFETCH)

    rows = tl.arange(0, M)
    lane = rows % G
    turn = rows // G  # which of the L_Q queries
    cols = tl.arange(0, D)
    near = tl.arange(0, BLOCK_N)
    HALVES: tl.constexpr = D >= 32
    PART: tl.constexpr = D // 2 if HALVES else D
    half = tl.arange(0, PART)
    q_ptr = query + b * stride_qb + (h * G + lane)[:, None] * stride_qh + turn[:, None] * stride_ql + half[None, :]
    position = filled - L_Q + turn
    k_base = key + low.to(tl.int64) * stride_kl
    v_base = value + low.to(tl.int64) * stride_vl
    k_tile = near[:, None] * stride_kl + half[None, :]  # [BLOCK_N, PART]
    v_tile = near[:, None] * stride_vl + cols[None, :]
    if EARLY:
        gdc_wait()
        if OVERLAP:
            gdc_launch_dependents()
    if not LATE_QUERY:
        q_low = tl.load(q_ptr, mask=(rows < R)[:, None], other=0.0)  # [M, PART]
        q_high = q_low
        if HALVES:
            q_high = tl.load(q_ptr + PART, mask=(rows < R)[:, None], other=0.0)

    # Scores stay in the units of q . k and are scaled inside the exponent, where one fused multiply-add does it; an
    # additive mask needs them in natural units first.
    unit = scale * LOG2E
    if MASK_KIND == 2:
        unit = LOG2E
    highest = tl.full([M], -float("inf"), tl.float32)
    sums = tl.zeros([M, BLOCK_N], tl.float32)
    acc = tl.zeros([M, D], tl.float32)
    for start in range(low, high, BLOCK_N):
        keys = start + near
        ok = keys < high
        # rows at and beyond `high` are never read: they may hold NaN, which 0 * would not remove
        k_low = tl.load(k_base + k_tile, mask=ok[:, None], other=0.0)
        k_high = k_low
        if HALVES:
            k_high = tl.load(k_base + PART + k_tile, mask=ok[:, None], other=0.0)
        v = tl.load(v_base + v_tile, mask=ok[:, None], other=0.0)
        if LATE_QUERY:
            # In the loop the queries are one more tile on its way; loaded before it, they would hold up the first keys.
            # `nothing` is 0, which the compiler does not know, or it would move the load out again.
            q_low = tl.load(q_ptr, mask=(rows < R)[:, None], other=0.0)
            q_high = q_low
            if HALVES:
                q_high = tl.load(q_ptr + PART, mask=(rows < R)[:, None], other=0.0)
            q_ptr += nothing
        scores = scores_of(q_low, q_high, k_low, k_high, HALVES, PIN, PRECISION)  # [M, BLOCK_N]
        seen = ok[None, :]
        if CAUSAL:
            seen = seen & (keys[None, :] <= position[:, None])
        if WINDOWED:
            seen = seen & (keys[None, :] > position[:, None] - window)
        if MASK_KIND > 0:
            m_ptr = mask + b * stride_mb + (h * G + lane)[:, None] * stride_mh + turn[:, None] * stride_ml
            given = tl.load(
                m_ptr + keys[None, :].to(tl.int64) * stride_mn, mask=(rows < R)[:, None] & ok[None, :], other=0
            )
            if MASK_KIND == 1:
                seen = seen & (given != 0)
            else:
                scores = scores * scale + given.to(tl.float32)
        scores = tl.where(seen, scores, -float("inf"))
        highest, sums, acc = online_softmax(scores, v, unit, highest, sums, acc, PRECISION)
        k_base += BLOCK_N * stride_kl
        v_base += BLOCK_N * stride_vl

    if DEPENDENT and not OVERLAP:
        gdc_launch_dependents()
    total = tl.sum(sums, 1)
    solid = tl.where(total == 0.0, 1.0, total)
    acc = acc * (1.0 / solid)[:, None]
    o_base = out + b * stride_ob + h * G * stride_oh
    if FUSED:  # noqa: SIM102 (decided while compiling; the inner condition on the device)
        if span <= chunk:
            o_ptr = o_base + lane[:, None].to(tl.int64) * stride_oh + turn[:, None] * stride_ol + cols[None, :]
            tl.store(o_ptr, acc.to(out.dtype.element_ty), mask=(rows < R)[:, None])
            return
    head = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    part += head.to(tl.int64) * (SPLITS * R * D)
    lse += head * (SPLITS * R)
    target = part + (split * R + rows)[:, None] * D + cols[None, :]
    tl.store(target, acc.to(part.dtype.element_ty), mask=(rows < R)[:, None])
    tl.store(lse + split * R + rows, highest * unit + tl.log2(solid), mask=rows < R)
    if FUSED:
        # Every thread's stores come before the barrier, the barrier before the release of the arrival: the block that
        # acquires the last ticket sees all partial results.
        tl.debug_barrier()
        splits = tl.cdiv(span, chunk)
        ticket = tl.atomic_add(arrivals + head * 2, 1, sem="acq_rel", scope="gpu")
        reducers = tl.minimum(splits, REDUCERS)
        rank = ticket - (splits - reducers)
        if rank >= 0:
            if REDUCERS > 1:
                # The last few blocks share the merge. Fewer wait than fit on the GPU, so those they wait for can run.
                while tl.atomic_add(arrivals + head * 2, 0, sem="acquire", scope="gpu") < splits:
                    pass
                tl.debug_barrier()
            for piece in range(rank, REDUCERS, reducers):
                for row0 in range(0, R, MERGE_ROWS):
                    _merge(
                        part,
                        lse,
                        o_base,
                        splits,
                        row0,
                        piece * (D // REDUCERS),
                        stride_oh,
                        stride_ol,
                        G,
                        R,
                        D,
                        MERGE_ROWS,
                        D // REDUCERS,
                        MERGE_AT_ONCE,
                    )
            # The last to finish leaves the counters as the next launch, or the next replay, expects them.
            done = tl.atomic_add(arrivals + head * 2 + 1, 1, sem="acq_rel", scope="gpu")
            if done == reducers - 1:
                tl.store(arrivals + head * 2, 0)
                tl.store(arrivals + head * 2 + 1, 0)


@triton.jit(do_not_specialize=["bound", "window", "min_rows"])
def combine_kernel(
    part,
    lse,
    out,
    kv_len,
    bound,
    window,
    min_rows,
    stride_ob,
    stride_oh,
    stride_ol,
    L_Q: tl.constexpr,
    G: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    COLS: tl.constexpr,
    SPLITS: tl.constexpr,
    HAS_KV_LEN: tl.constexpr,
    WINDOWED: tl.constexpr,
    AT_ONCE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Merge the splits of one query row and COLS columns. Grid (D // COLS, L_Q * G, B * K).

    OVERLAP: the blocks start while split-K runs. What split-K itself may read (kv_len) they read before they wait for
    its end, because split-K lets them start only after its own predecessor is done.
    """
    R: tl.constexpr = L_Q * G
    if OVERLAP:
        gdc_launch_dependents()
    _, _, span, chunk = plan_splits(kv_len, bound, window, min_rows, L_Q, HAS_KV_LEN, WINDOWED, SPLITS)
    splits = tl.maximum(tl.cdiv(span, chunk), 1)
    head = tl.program_id(2)
    b = (head // K).to(tl.int64)
    h = (head % K).to(tl.int64)
    part += head.to(tl.int64) * (SPLITS * R * D)
    lse += head * (SPLITS * R)
    o_base = out + b * stride_ob + h * G * stride_oh
    if OVERLAP:
        gdc_wait()
    _merge(
        part,
        lse,
        o_base,
        splits,
        tl.program_id(1),
        tl.program_id(0) * COLS,
        stride_oh,
        stride_ol,
        G,
        R,
        D,
        1,
        COLS,
        AT_ONCE,
    )
