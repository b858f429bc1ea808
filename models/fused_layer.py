"""A decoder layer in few launches, on the weights of the Hugging Face layer that it stands for.

Per token, with the residual stream h and its norm x coming from the layer before:

    qkv = W_qkv x                                   matvec
    q   = rope(norm(q)); the cache row = k, v       decode_attention; or, with `fuse_attention` off,
    c   = attention(q, cache)                       qk_norm_rope_cache_write and kernels.sdpa
    o   = W_o c                                     matvec
    h   = h + norm(o);  x = norm(h)                 sandwich
    a   = act(W_gate x) * (W_up x)                  matvec_gated
    d   = W_down a                                  matvec
    h   = (h + norm(d)) * layer_scalar;  x = the next layer's norm(h)       sandwich

A family without norms behind its blocks (Qwen3) leaves those out. Prefill takes the same way with matrix products
(cuBLAS) in place of the matvecs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from kernels.decode_attention import decode_attention
from kernels.gated import Activation, gated
from kernels.matvec import DenseWeight, Weight, matmul, matvec, matvec_gated
from kernels.norm import Norm, rms_norm, sandwich
from kernels.rope import qk_norm_rope_cache_write
from models.attention import RoutedAttention, attend_chunk, attend_token
from models.packing import packed
from models.spec import LayerKind


@dataclass(frozen=True)
class Rope:
    """Rotary angles of one layer kind: inv_freq fp32 [D/2] and the factor of cos and sin."""

    inv_freq: torch.Tensor
    attention_scaling: float


class RopeSource(Protocol):
    """Who knows the rotary angles: asked at the first call, when the device holds them."""

    def rope(self, kind: LayerKind) -> Rope: ...


class Stream(NamedTuple):
    """What passes between fused layers: the residual stream and its norm by whoever reads it next, [1, T, hidden]."""

    h: torch.Tensor
    x: torch.Tensor


@dataclass(frozen=True)
class LayerRecipe:
    """What the families' layers differ in. `sandwich`: norms stand behind the attention and MLP blocks, too."""

    activation: Activation
    norm_offset: float
    sandwich: bool


@dataclass(frozen=True)
class LayerParts:
    """Weights and norms of one layer as the kernels take them; views of the Hugging Face layer's own parameters."""

    qkv: Weight
    o: Weight
    gate_up: Weight
    down: Weight
    attention_norm: Norm
    mlp_norm: Norm
    next_norm: Norm
    q_norm: Norm
    k_norm: Norm
    v_norm: Norm | None
    after_attention: Norm | None
    after_mlp: Norm | None
    scalar: torch.Tensor | None
    rope: Rope


def norm_of(module: Any, offset: float) -> Norm:
    """The kernels' view of a Hugging Face RMSNorm module (they spell epsilon in two ways)."""
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    return Norm(getattr(module, "weight", None), eps, offset)


class FusedDecoderLayer(nn.Module):
    """Takes the call of the Hugging Face decoder layer it wraps, whose self_attn must already be RoutedAttention."""

    def __init__(
        self, hf_layer: Any, next_norm: Any, recipe: LayerRecipe, ropes: RopeSource, *, fuse_attention: bool, pdl: bool
    ):
        """`next_norm`: the Hugging Face norm that reads this layer's output, the next layer's or the model's last.

        `fuse_attention`: norms, RoPE and cache write inside split-K where the layer's route is split-K.
        """
        super().__init__()
        assert isinstance(hf_layer.self_attn, RoutedAttention)
        self.hf = hf_layer
        self.recipe = recipe
        # In tuples, because they are modules of the model, not of this layer.
        self._ropes, self._next_norm = (ropes,), (next_norm,)
        self.pdl = pdl
        self.fuses_attention = fuse_attention and hf_layer.self_attn.routes.decode.kernel in ("splitk", "reference")

    @cached_property
    def parts(self) -> LayerParts:
        """Resolved at the first call, once the parameters are filled and packed."""
        layer, attention, offset = self.hf, self.hf.self_attn, self.recipe.norm_offset
        qkv = [p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj) if p is not None]
        sandwiched = self.recipe.sandwich
        before_mlp = layer.pre_feedforward_layernorm if sandwiched else layer.post_attention_layernorm
        return LayerParts(
            qkv=DenseWeight(packed(qkv)),
            o=DenseWeight(attention.o_proj.weight),
            gate_up=DenseWeight(packed([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])),
            down=DenseWeight(layer.mlp.down_proj.weight),
            attention_norm=norm_of(layer.input_layernorm, offset),
            mlp_norm=norm_of(before_mlp, offset),
            next_norm=norm_of(self._next_norm[0], offset),
            q_norm=norm_of(attention.q_norm, offset),
            k_norm=norm_of(attention.k_norm, offset),
            v_norm=None if isinstance(attention.v_norm, nn.Identity) else norm_of(attention.v_norm, offset),
            after_attention=norm_of(layer.post_attention_layernorm, offset) if sandwiched else None,
            after_mlp=norm_of(layer.post_feedforward_layernorm, offset) if sandwiched else None,
            scalar=getattr(layer, "layer_scalar", None),
            rope=self._ropes[0].rope(attention.spec.kind),
        )

    def forward(self, stream: torch.Tensor | Stream, *_hf_arguments: Any, **_unused: Any) -> Stream:
        """The stream [1, T, hidden] behind this layer, at the caches' current positions (see RoutedAttention.forward).

        The first layer is given the embedding alone.
        """
        parts = self.parts
        if not isinstance(stream, Stream):
            # A plain launch: what the step has set so far is settled for the chain of dependent launches behind it.
            stream = Stream(stream, rms_norm(stream, parts.attention_norm, pdl=False))
        qkv = self._product(parts.qkv, stream.x)
        context = self._attend_token(qkv) if qkv.shape[1] == 1 else self._attend_chunk(qkv)
        o = self._product(parts.o, context)
        stream = self._seam(stream.h, o, parts.after_attention, parts.mlp_norm)
        d = self._product(parts.down, self._gate(stream.x))
        return self._seam(stream.h, d, parts.after_mlp, parts.next_norm, parts.scalar)

    def _seam(
        self, h: torch.Tensor, y: torch.Tensor, post: Norm | None, pre: Norm, scalar: torch.Tensor | None = None
    ) -> Stream:
        """h = (h + post(y)) * scalar and x = pre(h): where one block ends and the next begins."""
        h, x = sandwich(h, y, post=post, pre=pre, scalar=scalar, pdl=self._pdl_for(h))
        assert x is not None
        return Stream(h, x)

    def _product(self, weight: Weight, x: torch.Tensor) -> torch.Tensor:
        return matvec(weight, x, pdl=self.pdl) if x.shape[1] == 1 else matmul(weight, x)

    def _gate(self, x: torch.Tensor) -> torch.Tensor:
        """act(W_gate x) * (W_up x)."""
        weight, activation = self.parts.gate_up, self.recipe.activation
        if x.shape[1] == 1:
            return matvec_gated(weight, x, activation=activation, pdl=self.pdl)
        return gated(matmul(weight, x), activation=activation)

    def _attend_token(self, qkv: torch.Tensor) -> torch.Tensor:
        """Attention over the cache with this token in it: packed q|k|v [1, 1, N] -> context [1, 1, H * D]."""
        attention = self.hf.self_attn
        spec, cache = attention.spec, attention.cache
        if self.fuses_attention:
            context = decode_attention(
                qkv,
                cache.keys,
                cache.values,
                position=attention.caches.position,
                row=cache.cursor.row,
                kv_len=cache.cursor.kv_len,
                scale=spec.scale,
                pdl=self.pdl,
                **self._head_options,
            )
            return context.view(1, 1, -1)
        query = self._rotate(qkv, cache.keys, cache.values, ring=spec.window is not None)
        # L_q == 1: [1, H, 1, D] is [H * D] in memory
        return attend_token(query, cache, spec, attention.routes).view(1, 1, -1)

    def _attend_chunk(self, qkv: torch.Tensor) -> torch.Tensor:
        """Attention of a prefill chunk: packed q|k|v [1, T, N] -> context [1, T, H * D]."""
        attention = self.hf.self_attn
        chunk = attention.cache.open_chunk(attention.caches.length, qkv.shape[1])
        query = self._rotate(qkv, chunk.keys, chunk.values, first_row=chunk.first_row)
        context = attend_chunk(query, chunk, attention.spec, attention.routes)
        attention.cache.close_chunk(chunk)
        return context.transpose(1, 2).flatten(2)

    def _rotate(
        self,
        qkv: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        ring: bool = False,
        first_row: int | None = None,
    ) -> torch.Tensor:
        """Norms and RoPE of packed q|k|v; writes the keys and values to their rows, returns the query [1, H, T, D]."""
        return qk_norm_rope_cache_write(
            qkv,
            keys,
            values,
            position=self.hf.self_attn.caches.position,
            ring=ring,
            first_row=first_row,
            pdl=self._pdl_for(qkv),
            **self._head_options,
        )

    @cached_property
    def _head_options(self) -> dict[str, Any]:
        """What happens to the heads of q|k|v, as both of its kernels take it."""
        parts, spec = self.parts, self.hf.self_attn.spec
        return dict(
            num_heads=spec.num_heads,
            inv_freq=parts.rope.inv_freq,
            attention_scaling=parts.rope.attention_scaling,
            q_norm=parts.q_norm,
            k_norm=parts.k_norm,
            v_norm=parts.v_norm,
            value_is_key=spec.value_is_key,
        )

    def _pdl_for(self, x: torch.Tensor) -> bool:
        """Dependent launch chains the decode step's kernels; between a prefill's matrix products it hides nothing."""
        return self.pdl and x.shape[1] == 1
