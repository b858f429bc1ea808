"""Rotary embedding, fused with the per-head norms and the cache write."""

from kernels.rope.kernel import qk_norm_rope_cache_write

__all__ = ["qk_norm_rope_cache_write"]
