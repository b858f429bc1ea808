"""Programmatic dependent launch (PDL): a kernel starts while the one before it runs, and waits for its results.

Rules of this package, because a wrong one gives wrong numbers without an error:

1. Every kernel launched with `launch_pdl=True` executes `gdc_wait` in every program, before its first read of
   anything another kernel of the step writes, and before its first store. Kernel n + 1 then completes after kernel n,
   so reuse of buffers is safe.
2. Only data that no kernel of the chain of dependent launches writes may be loaded before the wait: weights, norm
   weights, inverse frequencies, cache rows of earlier tokens. A kernel may start before the one two places in front of
   it has ended, so what the step sets at its start (position, row, kv_len) counts as such only because a plain launch
   stands between it and the chain.
3. The wait stands outside loops: the pipeliner hoists loads above a wait inside one (triton issue 11905).

Supported from compute capability 9.0; the switch is a constexpr of each kernel, off by default.
"""

from __future__ import annotations

import functools

import torch
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["gdc_launch_dependents", "gdc_wait", "launch_options", "supports_pdl"]


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def supports_pdl(device: torch.device) -> bool:
    """Whether kernels on `device` may be launched with dependent launch (CUDA, compute capability 9.0 or later)."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return _capability(torch.cuda.current_device() if device.index is None else device.index) >= (9, 0)


def launch_options(pdl: bool) -> dict[str, bool]:
    """Launch keywords for `kernel[grid](..., **launch_options(pdl))`; empty when off: other backends never see them."""
    return {"launch_pdl": True} if pdl else {}
