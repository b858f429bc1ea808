"""How decode_attention is cut into programs: plain data, chosen by shape; nothing is tuned at run time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DecodeAttentionConfig:
    """The grid holds about `programs_per_sm` programs for each multiprocessor, each of at least `min_rows` rows.

    With `preload` the first `block_n` rows are in registers before the dependent-launch wait; behind them, up to
    `prefetch_rows` are on their way to the L2 (a power of two, or 0). `num_stages` pipelines the rows that are not
    preloaded.
    """

    block_n: int = 32
    num_warps: int = 4
    num_stages: int = 2
    programs_per_sm: int = 2
    min_rows: int = 32
    prefetch_rows: int = 0
    preload: bool = True


def config_for(head_dim: int, capacity: int) -> DecodeAttentionConfig:
    """The configuration for caches of `capacity` rows of `head_dim`. Measured inside a step: see NOTES.md.

    Programs of few registers win there over those that are faster alone: they find room beside the products around.
    """
    if head_dim >= 512:
        return DecodeAttentionConfig(block_n=16, min_rows=16, prefetch_rows=64, preload=False)
    if head_dim >= 256:
        return DecodeAttentionConfig(programs_per_sm=4, prefetch_rows=64)
    if capacity <= 1024:
        return DecodeAttentionConfig(block_n=64, num_warps=8)
    return DecodeAttentionConfig(num_stages=3, prefetch_rows=64)
