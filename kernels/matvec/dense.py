"""Dense matrix-vector product: a program reads whole rows, tile by tile, several tiles ahead of the arithmetic.

Why it is shaped so. The product moves N * K weights once and everything else is small, so the only task is to keep
enough loads in flight, also across kernel boundaries. K is a constant: the stream of tiles is unrolled, tiles wait in
registers (a plain register pipeline, PRELOAD tiles deep, reaching across the end of a row), and under dependent launch
the first PRELOAD tiles are requested before the wait, so that the memory works while the kernel before drains. Programs
are many and short (SERIES groups of ROWS rows each): the hardware hands them out, which balances the tail better than a
persistent loop. x is read from L1/L2.

Prologue: RMSNorm of x by deferred scale, y = rsqrt(mean(x^2) + eps) * sum(w * x * gain): every program computes the
same scalar. It costs more than a norm in the kernel in front (NOTES.md); decode uses `sandwich` for that. Epilogue:
soft-cap, residual, or act(gate) * up for rows n and N/2 + n. Sums are taken in a fixed order, so results repeat bit
for bit.
"""

# mypy: disable-error-code=assignment
from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.gated.kernel import ACTIVATIONS, activate
from kernels.gated.reference import Activation
from kernels.matvec.configs import MatvecConfig
from kernels.norm.spec import Norm, norm_operands
from kernels.pdl import gdc_launch_dependents, gdc_wait, launch_options


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
def _row_group(pid, N, G: tl.constexpr, ROWS: tl.constexpr, SERIES: tl.constexpr, GATED: tl.constexpr):
    """Of group G: (rows of the matrix [R], whether their outputs exist, outputs [ROWS], whether they exist)."""
    first = (pid * SERIES + G) * ROWS
    outputs = first + tl.arange(0, ROWS)
    if GATED:
        lane = tl.arange(0, 2 * ROWS)
        rows = first + lane // 2
        rows_ok = rows < N
        rows += (lane % 2).to(tl.int64) * N  # N = 1 is a constant, which has no dtype
    else:
        rows = outputs
        rows_ok = rows < N
    return rows, rows_ok, outputs, outputs < N


@triton.jit
def _matvec_kernel(
    w, x, gain, residual, out, N, eps, offset, cap,
    K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, PRELOAD: tl.constexpr, SERIES: tl.constexpr,
    EVEN_ROWS: tl.constexpr, NORM: tl.constexpr, GAIN: tl.constexpr, RESIDUAL: tl.constexpr, CAP: tl.constexpr,
    ACTIVATION: tl.constexpr, PDL: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """SERIES groups of ROWS outputs a program, one after the other; N counts outputs.

    With ACTIVATION a group has 2 ROWS matrix rows: gate and up rows interleaved. Step s of the unrolled stream is tile
    s % TILES of group s // TILES, so the tiles in flight reach across the end of a row.
    """
    pid = tl.program_id(0).to(tl.int64)
    GATED: tl.constexpr = ACTIVATION > 0
    TILES: tl.constexpr = (K + BLOCK - 1) // BLOCK
    STEPS: tl.constexpr = TILES * SERIES
    if PDL and EARLY:
        gdc_launch_dependents()
    tiles = ()
    for s in tl.static_range(PRELOAD):
        rows, rows_ok, _, _ = _row_group(pid, N, s // TILES, ROWS, SERIES, GATED)
        tiles += (_load_tile(w, rows, rows_ok, s % TILES, K, BLOCK, EVEN_ROWS),)
    if PDL:
        gdc_wait()
    squares = tl.zeros([BLOCK], tl.float32)
    scale = 1.0
    for s in tl.static_range(STEPS):
        if s + PRELOAD < STEPS:
            rows, rows_ok, _, _ = _row_group(pid, N, (s + PRELOAD) // TILES, ROWS, SERIES, GATED)
            tiles += (_load_tile(w, rows, rows_ok, (s + PRELOAD) % TILES, K, BLOCK, EVEN_ROWS),)
        rows, rows_ok, outputs, ok = _row_group(pid, N, s // TILES, ROWS, SERIES, GATED)
        if s % TILES == 0:
            acc = tl.zeros([rows.shape[0], BLOCK], tl.float32)
            if RESIDUAL:
                rest = tl.load(residual + outputs, mask=ok, other=0.0).to(tl.float32)
        value = _load_vector(x, s % TILES, K, BLOCK)
        if NORM:
            if s < TILES:
                squares += value * value
            if GAIN:
                # Lanes past K hold value 0, so their offset + 0 gain adds nothing.
                value = value * (offset + _load_vector(gain, s % TILES, K, BLOCK))
        acc += tiles[s].to(tl.float32) * value[None, :]
        if s % TILES == TILES - 1:
            if PDL and not EARLY and s == STEPS - 1:
                gdc_launch_dependents()
            y = tl.sum(acc, 1)
            if NORM:
                if s < TILES:
                    scale = tl.rsqrt(tl.sum(squares, 0) / K + eps)
                y = y * scale
            if GATED:
                gate, up = tl.split(tl.reshape(y, [ROWS, 2]))
                y = activate(gate, ACTIVATION) * up
            if CAP:
                y = cap * (2.0 * tl.sigmoid(2.0 * y / cap) - 1.0)
            if RESIDUAL:
                y += rest
            tl.store(out + outputs, y.to(out.dtype.element_ty), mask=ok)


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
) -> None:
    """Run the Triton kernel: w [rows, K], x [K], out [rows] or [rows / 2] when gated (also under the interpreter)."""
    rows, K = w.shape
    N = rows if activation is None else rows // 2
    gain, eps, offset, normed, gained = norm_operands(norm, x)
    tiles = triton.cdiv(K, launch.block)
    programs = triton.cdiv(N, launch.rows * launch.series)
    _matvec_kernel[(programs,)](
        w, x, gain, out if residual is None else residual, out, N, eps, offset, softcap or 1.0,
        K, launch.rows, launch.block, min(launch.preload, tiles * launch.series), launch.series,
        N % (launch.rows * launch.series) == 0,
        normed, gained, residual is not None, softcap is not None, ACTIVATIONS[activation],
        pdl, launch.trigger == "early", num_warps=launch.warps, num_stages=1, **launch_options(pdl),
    )  # fmt: skip
