"""What one model is made of, as plain data. Every family file turns its Hugging Face config into these.

Shape letters used all over the package: B batch, H query heads, K key-value heads, L length, D head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LayerKind = Literal["full", "sliding"]


@dataclass(frozen=True)
class AttentionSpec:
    """One attention layer. `window` counts the positions a query sees, itself included; None means all of them."""

    kind: LayerKind
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    value_is_key: bool = False  # Gemma 4 full layers: v = v_norm(k_proj(x)), there is no v_proj

    def kv_capacity(self, ctx_size: int) -> int:
        """Rows of key-value cache this layer needs to serve a context of `ctx_size` positions."""
        return ctx_size if self.window is None else min(self.window, ctx_size)

    def kv_row_bytes(self, itemsize: int) -> int:
        """Bytes of one cached position, keys and values together."""
        return 2 * self.num_kv_heads * self.head_dim * itemsize


@dataclass(frozen=True)
class ModelSpec:
    """The facts of a model that caches, kernels and reports need. One AttentionSpec per decoder layer."""

    family: str
    layers: tuple[AttentionSpec, ...]
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    tied_embeddings: bool
    logit_softcap: float | None = None

    def kv_bytes(self, length: int, itemsize: int) -> int:
        """Bytes of keys and values that decoding one token at context `length` reads."""
        return sum(layer.kv_capacity(length) * layer.kv_row_bytes(itemsize) for layer in self.layers)
