"""Tuning knobs of the kernels as plain data: measured tables name them, and the host needs no triton to read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SplitKConfig:
    """How one split-K decode runs.

    The grid holds about `programs_per_sm` programs for each multiprocessor, whatever the buffer's length; a split never
    takes fewer than `min_rows` rows. `reduce`: "fused" merges the splits in the last `reducers` blocks that arrive at
    a head (1 = the last one alone), "apart" in a second kernel, which `overlap` lets start early. `dependent` lets the
    kernel itself start before its predecessor has ended; it waits for that end, and until then prefetches the first
    `prefetch_rows` keys and values of every split into the L2. Both are programmatic dependent launch (kernels/pdl.py)
    and do nothing below SM90. `late_query` asks for the first keys before the queries have arrived, at the price of
    reading them in every turn.
    """

    block_n: int = 32
    num_warps: int = 4
    num_stages: int = 2
    programs_per_sm: int = 2
    min_rows: int = 32
    reduce: Literal["fused", "apart"] = "fused"
    reducers: int = 1
    overlap: bool = False
    dependent: bool = False
    prefetch_rows: int = 0
    late_query: bool = False


@dataclass(frozen=True)
class StandardConfig:
    """How one standard (flash) launch runs: rows of packed queries and of keys a program holds at once.

    `tma` loads keys and values with Hopper's tensor memory accelerator where the call allows it (SM90+, the number of
    valid rows known to the host, 16-byte aligned rows) and like the rest elsewhere.
    """

    block_m: int = 64
    block_n: int = 64
    num_warps: int = 4
    num_stages: int = 2
    tma: bool = False
