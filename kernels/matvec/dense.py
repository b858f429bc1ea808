"""Dense matrix-vector product: a program reads ROWS whole rows, tile by tile, several tiles ahead of the arithmetic.

Why it is shaped so. The product moves N * K weights once and everything else is small, so the only task is to keep
enough loads in flight, also across kernel boundaries. K is a constant: the tile loop is unrolled, tiles wait in
registers (a plain register pipeline, PRELOAD tiles deep), and under dependent launch the first PRELOAD tiles are
requested before the wait, so that the memory works while the kernel before drains. Rows are handed out by the
hardware (one program per ROWS rows), which balances the tail better than a persistent loop. x is read from L1/L2.

Prologue: RMSNorm of x by deferred scale, y = rsqrt(mean(x^2) + eps) * sum(w * x * gain): the sum of squares runs
along in the same pass, every program computes the same scalar. Epilogue: soft-cap, residual, or act(gate) * up for
rows n and N/2 + n. Sums are taken in a fixed order, so results repeat bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.gated.kernel import ACTIVATIONS, activate
from kernels.gated.reference import Activation
from kernels.matvec.configs import MatvecConfig
from kernels.norm.spec import Norm
from kernels.pdl import gdc_launch_dependents, gdc_wait, launch_options
from kernels.prefetch import chunks, prefetch_chunk

# Bytes that each of the last programs requests for the next kernel.
AHEAD_BYTES = 16384


@triton.jit
def _load_tile(w, rows, rows_ok, T: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, EVEN_ROWS: tl.constexpr):
    """Weights [R, BLOCK] of columns T * BLOCK onwards; masks only where the matrix ends."""
    cols = T * BLOCK + tl.arange(0, BLOCK)
    at = w + rows[:, None] * K + cols[None, :]
    if (T + 1) * BLOCK <= K:
        if EVEN_ROWS:
            tile = tl.load(at, eviction_policy="evict_first")
        else:
            tile = tl.load(at, mask=rows_ok[:, None], other=0.0, eviction_policy="evict_first")
    else:
        tile = tl.load(at, mask=rows_ok[:, None] & (cols < K)[None, :], other=0.0, eviction_policy="evict_first")
    return tile


@triton.jit
def _load_vector(x, T: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    cols = T * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + cols) if (T + 1) * BLOCK <= K else tl.load(x + cols, mask=cols < K, other=0.0)
    return value.to(tl.float32)


@triton.jit
def _matvec_kernel(
    w, x, gain, residual, out, ahead, N, eps, offset, cap, ahead_chunks,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PRELOAD: tl.constexpr, EVEN_ROWS: tl.constexpr,
    NORM: tl.constexpr, GAIN: tl.constexpr, RESIDUAL: tl.constexpr, CAP: tl.constexpr, ACTIVATION: tl.constexpr,
    PDL: tl.constexpr, EARLY: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """out[n] for n = ROWS * pid ...; N counts outputs. With ACTIVATION, R = 2 ROWS interleaves gate and up rows."""
    pid = tl.program_id(0).to(tl.int64)
    TILES: tl.constexpr = (K + BLOCK - 1) // BLOCK
    if ACTIVATION == 0:
        rows = pid * ROWS + tl.arange(0, ROWS)
        rows_ok = rows < N
    else:
        lane = tl.arange(0, 2 * ROWS)
        rows = pid * ROWS + lane // 2
        rows_ok = rows < N
        rows += (lane % 2) * N.to(tl.int64)
    if PDL and EARLY:
        gdc_launch_dependents()
    tiles = ()
    for t in tl.static_range(PRELOAD):
        tiles += (_load_tile(w, rows, rows_ok, t, K, BLOCK, EVEN_ROWS),)  # type: ignore[assignment]
    if PDL:
        gdc_wait()
    acc = tl.zeros([rows.shape[0], BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    for t in tl.static_range(TILES):
        if t + PRELOAD < TILES:
            tiles += (_load_tile(w, rows, rows_ok, t + PRELOAD, K, BLOCK, EVEN_ROWS),)  # type: ignore[assignment]
        value = _load_vector(x, t, K, BLOCK)
        if NORM:
            squares += value * value
            if GAIN:
                # Lanes past K hold value 0, so their offset + 0 gain adds nothing.
                value = value * (offset + _load_vector(gain, t, K, BLOCK))
        acc += tiles[t].to(tl.float32) * value[None, :]
    if PDL and not EARLY:
        gdc_launch_dependents()
    y = tl.sum(acc, 1)
    if AHEAD > 0:
        # Behind the barrier of the sum: the loads of this program have arrived, so the request fills the drain.
        first = tl.num_programs(0) - ahead_chunks
        if tl.program_id(0) >= first:
            prefetch_chunk(ahead, tl.program_id(0) - first, AHEAD)
    if NORM:
        y = y * tl.rsqrt(tl.sum(squares, 0) / K + eps)
    if ACTIVATION == 0:
        if CAP:
            y = cap * (2.0 * tl.sigmoid(2.0 * y / cap) - 1.0)
        if RESIDUAL:
            y += tl.load(residual + rows, mask=rows_ok, other=0.0).to(tl.float32)
        tl.store(out + rows, y.to(out.dtype.element_ty), mask=rows_ok)
    else:
        gate, up = tl.split(tl.reshape(y, [ROWS, 2]))
        n = pid * ROWS + tl.arange(0, ROWS)
        tl.store(out + n, (activate(gate, ACTIVATION) * up).to(out.dtype.element_ty), mask=n < N)


def launch_dense(
    w: torch.Tensor,
    x: torch.Tensor,
    out: torch.Tensor,
    *,
    residual: torch.Tensor | None,
    norm: Norm | None,
    softcap: float | None,
    activation: Activation | None,
    launch: MatvecConfig,
    pdl: bool,
    ahead: torch.Tensor | None = None,
) -> None:
    """Run the Triton kernel: w [rows, K], x [K], out [rows] or [rows / 2] when gated (also under the interpreter)."""
    rows, K = w.shape
    N = rows if activation is None else rows // 2
    gain = None if norm is None else norm.weight
    tiles = triton.cdiv(K, launch.block)
    programs = triton.cdiv(N, launch.rows)
    ahead_chunks = min(programs, chunks(ahead, AHEAD_BYTES))
    _matvec_kernel[(programs,)](
        w, x, x if gain is None else gain, out if residual is None else residual, out,
        w if ahead is None else ahead, N,
        0.0 if norm is None else norm.eps, 0.0 if norm is None else norm.offset, softcap or 1.0, ahead_chunks,
        K, launch.rows, launch.block, min(launch.preload, tiles), N % launch.rows == 0,
        norm is not None, gain is not None, residual is not None, softcap is not None, ACTIVATIONS[activation],
        pdl, launch.trigger == "early", AHEAD_BYTES if ahead_chunks else 0,
        num_warps=launch.warps, num_stages=1, **launch_options(pdl),
    )  # fmt: skip
