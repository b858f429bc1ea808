"""What this GPU can do at most: the denominators of MBU and MFU, measured where and when they are used.

Read bandwidth: a Triton sum over memory, many times the L2. Matmul rate: a bf16 8192 x 8192 x 8192 product of random
numbers (zeros run faster). Both are medians of CUDA-graph replays.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import triton
import triton.language as tl

from kernels.timing import graph_times

READ_BYTES = 4 << 30
MATMUL_SIDE = 8192
REPEATS = 15

# (elements of int32 a load, loads a program, warps): the best of these differs between GPUs.
_READ_SHAPES = ((4096, 8, 8), (8192, 4, 8), (4096, 16, 4))


@triton.jit
def _sum_kernel(x, out, BLOCK: tl.constexpr, LOADS: tl.constexpr):
    pid = tl.program_id(0)
    base = pid.to(tl.int64) * BLOCK * LOADS
    total = tl.zeros([BLOCK], tl.int32)
    for i in range(LOADS):
        total += tl.load(x + base + i * BLOCK + tl.arange(0, BLOCK), eviction_policy="evict_first")
    tl.store(out + pid, tl.sum(total))


def read_bandwidth(device: torch.device, memory: torch.Tensor | None = None) -> float:
    """Bytes per second of a pure read of `memory` (default: READ_BYTES of random int32 allocated for it)."""
    if memory is None:
        memory = torch.randint(-(2**31), 2**31 - 1, (READ_BYTES // 4,), dtype=torch.int32, device=device)
    words = memory.reshape(-1).view(torch.int32)
    best = 0.0
    for block, loads, warps in _READ_SHAPES:
        programs = words.numel() // (block * loads)
        out = torch.empty(programs, dtype=torch.int32, device=device)
        seconds = _seconds(lambda: _sum_kernel[(programs,)](words, out, block, loads, num_warps=warps))  # noqa: B023
        best = max(best, programs * block * loads * 4 / seconds)
    return best


def matmul_rate(device: torch.device) -> float:
    """Floating-point operations per second (2 per multiply-add) of a bf16 product of side MATMUL_SIDE."""
    a = torch.randn(MATMUL_SIDE, MATMUL_SIDE, dtype=torch.bfloat16, device=device)
    b = torch.randn(MATMUL_SIDE, MATMUL_SIDE, dtype=torch.bfloat16, device=device)
    out = torch.empty_like(a)
    return 2 * MATMUL_SIDE**3 / _seconds(lambda: torch.mm(a, b, out=out))


def _seconds(work: Callable[[], object]) -> float:
    """Median seconds of one call, replayed in a CUDA graph."""
    return statistics.median(graph_times([work], runs=REPEATS)) / 1e6
