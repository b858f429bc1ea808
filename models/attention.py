"""The attention module that replaces Hugging Face's: same projections and norms, our cache and our routed kernels.

It keeps the replaced module's submodules under their own names, so checkpoints fill it unchanged, and it takes the same
call, so the decoder layer around it does not know the difference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from kernels.sdpa import sdpa
from kernels.sdpa.config import SplitKConfig
from kernels.sdpa.route import Route, can_run, named_route, route
from kernels.sdpa.shape import Shape, device_name
from models.cache import Chunk, KVCaches, LayerCache
from models.spec import AttentionSpec


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate heads [B, H, L, D] by angles [B, L, D] in Hugging Face's half-split convention (RoFormer, 2104.09864)."""
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat((-second, first), dim=-1)
    return x * cos.unsqueeze(1) + rotated * sin.unsqueeze(1)


@dataclass(frozen=True)
class LayerRoutes:
    """How one layer attends: a decoded token, and the chunks of a prompt."""

    decode: Route
    prefill: Route


def layer_routes(
    spec: AttentionSpec, ctx_size: int, dtype: torch.dtype, device: torch.device, *, name: str | None, pdl: bool
) -> LayerRoutes:
    """A layer's routes by the capacity of its cache. `name` forces a kernel; `pdl` False forbids dependent launch.

    A prompt can have any length, so prefill takes one kernel in one configuration, which the warm-up compiles for all
    of them. cuDNN's attention is up to a fifth faster without a window, but builds a plan for every new length: 50 to
    75 ms, where a whole prefill of 500 to 2400 tokens gained 0 to 4 ms by it (scripts/results/NOTES.md).
    """
    shape = Shape(
        B=1,
        H=spec.num_heads,
        K=spec.num_kv_heads,
        L_q=1,
        L_kv=spec.kv_capacity(ctx_size),
        D=spec.head_dim,
        dtype=str(dtype).removeprefix("torch."),
        bounded=True,
        device=device_name(device),
    )
    chosen = route(shape) if name is None else named_route(name, shape)
    if isinstance(chosen.config, SplitKConfig) and not pdl:
        chosen = replace(chosen, config=replace(chosen.config, dependent=False, overlap=False))
    prompt = replace(shape, L_q=ctx_size, L_kv=ctx_size, causal=True, window=spec.window, bounded=False)
    kernel = "standard" if can_run("standard", prompt) else "reference"
    return LayerRoutes(chosen, named_route(kernel, prompt))


def attend_token(query: torch.Tensor, cache: LayerCache, spec: AttentionSpec, routes: LayerRoutes) -> torch.Tensor:
    """One query [1, H, 1, D] over everything the cache holds, this token included -> [1, H, 1, D]."""
    assert cache.cursor is not None
    return sdpa(
        query,
        cache.keys,
        cache.values,
        scale=spec.scale,
        enable_gqa=True,
        kv_len=cache.cursor.kv_len,
        kv_len_settled=True,  # by KVCaches.begin_decode, at the start of the step
        route=routes.decode,
    )


def attend_chunk(query: torch.Tensor, chunk: Chunk, spec: AttentionSpec, routes: LayerRoutes) -> torch.Tensor:
    """The queries [1, H, T, D] of a prefill chunk over the rows they see -> [1, H, T, D]."""
    return sdpa(
        query,
        chunk.keys,
        chunk.values,
        is_causal=True,
        scale=spec.scale,
        enable_gqa=True,
        window=spec.window,
        route=routes.prefill,
    )


class RoutedAttention(nn.Module):
    """One attention layer over its LayerCache, by its routes."""

    def __init__(self, hf_attention: Any, spec: AttentionSpec, caches: KVCaches, layer: int, routes: LayerRoutes):
        super().__init__()
        self.q_proj, self.k_proj = hf_attention.q_proj, hf_attention.k_proj
        self.v_proj = None if spec.value_is_key else hf_attention.v_proj
        self.o_proj = hf_attention.o_proj
        self.q_norm, self.k_norm = hf_attention.q_norm, hf_attention.k_norm
        self.v_norm = getattr(hf_attention, "v_norm", nn.Identity())
        self.spec = spec
        self.caches = caches
        self.cache = caches.layers[layer]
        self.routes = routes

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_unused: object,
    ) -> tuple[torch.Tensor, None]:
        """Attend from hidden_states [1, T, hidden] at the caches' current positions; returns ([1, T, hidden], None).

        T == 1 reads its position from the device (`KVCaches.begin_decode`), T > 1 from the host (`KVCaches.length`).
        """
        query, key, value = self._heads(hidden_states, *position_embeddings)
        if hidden_states.shape[1] == 1:
            self.cache.write_token(key, value)
            context = attend_token(query, self.cache, self.spec, self.routes)
        else:
            chunk = self.cache.open_chunk(self.caches.length, hidden_states.shape[1])
            chunk.keys[:, :, chunk.first_row :] = key
            chunk.values[:, :, chunk.first_row :] = value
            context = attend_chunk(query, chunk, self.spec, self.routes)
            self.cache.close_chunk(chunk)
        return self.o_proj(context.transpose(1, 2).flatten(2)), None

    def _heads(self, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        def split(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(-1, (-1, self.spec.head_dim)).transpose(1, 2)  # [1, heads, T, D]

        query, key = split(self.q_proj(hidden_states)), split(self.k_proj(hidden_states))
        value = key if self.v_proj is None else split(self.v_proj(hidden_states))
        query = apply_rope(self.q_norm(query), cos, sin)
        key = apply_rope(self.k_norm(key), cos, sin)
        return query, key, self.v_norm(value)
