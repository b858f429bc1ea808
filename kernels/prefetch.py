"""Ask for the memory of the next kernel before it runs: bulk prefetch into L2 (compute capability 9.0).

Between two large products the memory idles for two to three microseconds: the first drains, launches and small
kernels take their turn, the second has no loads in flight yet. A prefetch needs no registers and nobody waits for it,
so the draining kernel, or idle multiprocessors beside a small kernel, can keep the memory at work. The bytes are read
once either way; the product finds its first rows in L2. Only memory that no kernel in between writes may be trusted
to be useful; a stale line is never read, L2 being the point of coherence.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.pdl import supports_pdl


@triton.jit
def prefetch_chunk(memory, chunk, BYTES: tl.constexpr):
    """Request BYTES (a multiple of 16) of `memory` from byte chunk * BYTES on; one thread of the program does it."""
    address = memory.to(tl.int64) + chunk.to(tl.int64) * BYTES
    tl.inline_asm_elementwise(
        """{
        .reg .pred p; .reg .u32 t;
        mov.u32 t, %tid.x;
        setp.eq.u32 p, t, 0;
        @p cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, t;
        }""",
        "=r,l,r",
        [address, tl.full((), BYTES, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


def chunks(memory: torch.Tensor | None, nbytes: int) -> int:
    """How many whole chunks of `nbytes` a kernel may request of `memory`; 0 without memory or on other hardware.

    Raises ValueError when memory is not contiguous or not aligned to 16 bytes.
    """
    if memory is None or not supports_pdl(memory.device):
        return 0
    if not memory.is_contiguous() or memory.data_ptr() % 16:
        raise ValueError(f"prefetch: memory {tuple(memory.shape)} must be contiguous and start on 16 bytes")
    return memory.numel() * memory.element_size() // nbytes
