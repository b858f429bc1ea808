"""The kernels of one decode step with random weights at a model's true shape: what scripts/chain.py times.

Letters: H query heads, KV key-value heads, D head dim, K hidden size, F intermediate size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from kernels.decode_attention import decode_attention
from kernels.gated import Activation
from kernels.matvec import DenseWeight, MatvecConfig, config_for, matvec, matvec_gated
from kernels.norm import Norm, rms_norm, sandwich
from kernels.rope import qk_norm_rope_cache_write
from kernels.sdpa.config import SplitKConfig
from kernels.sdpa.splitk import launch_splitk

CONTEXT = 2401
Part = Literal["matvec", "attention", "small"]
ALL_PARTS: frozenset[Part] = frozenset(("matvec", "attention", "small"))


@dataclass(frozen=True)
class AttentionShape:
    """One layer's attention. `capacity` rows of cache, a ring when `ring`."""

    heads: int
    kv_heads: int
    head_dim: int
    capacity: int
    ring: bool
    value_is_key: bool = False

    @property
    def qkv_rows(self) -> int:
        return (self.heads + self.kv_heads * (1 if self.value_is_key else 2)) * self.head_dim


@dataclass(frozen=True)
class ModelShape:
    """What the chain needs of a model. `sandwich`: Gemma's norms behind attention and MLP."""

    hidden: int
    intermediate: int
    vocab: int
    layers: tuple[AttentionShape, ...]
    activation: Activation
    sandwich: bool
    softcap: float | None = None


def _pattern(sliding: AttentionShape, full: AttentionShape, count: int) -> tuple[AttentionShape, ...]:
    return tuple(full if i % 6 == 5 else sliding for i in range(count))


def _full(heads: int, kv_heads: int, head_dim: int, value_is_key: bool = False) -> AttentionShape:
    return AttentionShape(heads, kv_heads, head_dim, CONTEXT + 256, False, value_is_key)


SHAPES = {
    "gemma4-31b": ModelShape(
        5376, 21504, 262144, _pattern(AttentionShape(32, 16, 256, 1024, True), _full(32, 4, 512, True), 60),
        "gelu_tanh", True, 30.0,
    ),
    "gemma3-27b": ModelShape(
        5376, 21504, 262208, _pattern(AttentionShape(32, 16, 128, 1024, True), _full(32, 16, 128), 62),
        "gelu_tanh", True,
    ),
    "qwen3-32b": ModelShape(5120, 25600, 151936, (_full(64, 8, 128),) * 64, "silu", False),
    "qwen3-8b": ModelShape(4096, 12288, 151936, (_full(32, 8, 128),) * 36, "silu", False),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """One way to run the step: every field is a switch of the A/B.

    norms: "prologue" leaves the norm before a matrix to that matrix (deferred scale), "seam" gives it to the kernel in
    front; residual_epilogue (families without norms behind blocks): the matvec adds the residual itself.
    configs: (cols, gated) -> launch, in place of the table. trigger: in place of the configuration's.
    attention: split-K behind a kernel of its own for norms, RoPE and cache write; "fused": decode_attention.
    """

    pdl: bool = False
    trigger: Literal["early", "late"] | None = None
    norms: Literal["prologue", "seam"] = "seam"
    residual_epilogue: bool = False
    parts: frozenset[Part] = ALL_PARTS
    configs: dict[tuple[int, bool], MatvecConfig] = field(default_factory=dict)
    attention: SplitKConfig | Literal["fused"] = field(default_factory=SplitKConfig)


@dataclass
class LayerWeights:
    qkv: DenseWeight
    o: DenseWeight
    gate_up: DenseWeight
    down: DenseWeight
    keys: torch.Tensor
    values: torch.Tensor
    head_norm: Norm
    value_norm: Norm | None
    inv_freq: torch.Tensor


class Chain:
    """Weights of `shape` (all layers distinct, so that the L2 stays cold) and its decode step on static buffers."""

    def __init__(self, shape: ModelShape, device: torch.device, layers: int | None = None):
        self.shape, self.device = shape, device
        self.attention = shape.layers[:layers]
        generator = torch.Generator(device).manual_seed(0)

        def rand(*size: int, scale: float = 0.02) -> torch.Tensor:
            tensor = torch.empty(size, device=device, dtype=torch.bfloat16)
            return tensor.uniform_(-1.7 * scale, 1.7 * scale, generator=generator)

        K, F = shape.hidden, shape.intermediate
        self.layers = [
            LayerWeights(
                DenseWeight(rand(a.qkv_rows, K)), DenseWeight(rand(K, a.heads * a.head_dim)),
                DenseWeight(rand(2 * F, K)), DenseWeight(rand(K, F)),
                rand(1, a.kv_heads, a.capacity, a.head_dim, scale=1.0),
                rand(1, a.kv_heads, a.capacity, a.head_dim, scale=1.0),
                Norm(1 + rand(a.head_dim, scale=0.1), 1e-6), Norm(None, 1e-6) if a.value_is_key else None,
                1e-6 ** (torch.arange(0, a.head_dim, 2, device=device) / a.head_dim),
            )
            for a in self.attention
        ]  # fmt: skip
        self.head = DenseWeight(rand(shape.vocab, K))
        self.norm = Norm(1 + rand(K, scale=0.1), 1e-6)
        self.scalar = torch.ones(1, device=device, dtype=torch.bfloat16)
        self.embedding = rand(1, K, scale=1.0)
        self.position = torch.tensor([CONTEXT - 1], device=device)
        self.rows = {a: self.position % a.capacity for a in set(self.attention)}
        self.lengths = {
            a: torch.tensor([min(CONTEXT, a.capacity)], device=device, dtype=torch.int32) for a in set(self.attention)
        }
        self.h, self.x = torch.zeros(1, K, device=device, dtype=torch.bfloat16), rand(1, K, scale=1.0)
        self.branch, self.act = rand(1, K, scale=1.0), rand(1, F, scale=1.0)
        self.qkv = {a: rand(1, a.qkv_rows, scale=1.0) for a in set(self.attention)}
        self.q = {a: rand(1, a.heads, 1, a.head_dim, scale=1.0) for a in set(self.attention)}
        self.context = {a: rand(1, a.heads, 1, a.head_dim, scale=1.0) for a in set(self.attention)}
        self.logits = torch.empty(1, shape.vocab, device=device, dtype=torch.float32)

    def bytes_per_token(self, parts: frozenset[Part] = ALL_PARTS) -> int:
        """Weights and valid key-value rows that one step reads."""
        total = 0
        if "matvec" in parts:
            matrices = [w for layer in self.layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down)]
            total += sum(w.nbytes for w in matrices) + self.head.nbytes
        if "attention" in parts:
            total += sum(4 * a.kv_heads * a.head_dim * min(CONTEXT, a.capacity) for a in self.attention)
        return total

    def _launch(self, plan: Plan, weight: DenseWeight, gated: bool = False) -> MatvecConfig:
        config = plan.configs.get((weight.cols, gated)) or config_for(weight.rows, weight.cols, gated=gated)
        return config if plan.trigger is None else replace(config, trigger=plan.trigger)

    def _matvec(self, plan: Plan, weight: DenseWeight, x: torch.Tensor, out: torch.Tensor, **options: Any) -> None:
        if "matvec" in plan.parts:
            matvec(weight, x, out=out, launch=self._launch(plan, weight), pdl=plan.pdl, **options)

    def _gated(self, plan: Plan, layer: LayerWeights, source: torch.Tensor) -> None:
        if "matvec" in plan.parts:
            matvec_gated(
                layer.gate_up, source, activation=self.shape.activation, out=self.act,
                norm=self.norm if plan.norms == "prologue" else None, pdl=plan.pdl,
                launch=self._launch(plan, layer.gate_up, gated=True),
            )  # fmt: skip

    def _block_end(self, plan: Plan, weight: DenseWeight, x: torch.Tensor, scalar: torch.Tensor | None) -> None:
        """The last product of a block and what joins it to the residual stream."""
        post = self.norm if self.shape.sandwich else None
        scalar = scalar if self.shape.sandwich else None
        pre = self.norm if plan.norms == "seam" else None
        if self.shape.sandwich or not plan.residual_epilogue:
            self._matvec(plan, weight, x, self.branch)
            if "small" in plan.parts:
                sandwich(
                    self.h, self.branch, post=post, scalar=scalar, pre=pre, h_out=self.h, x_out=self.x, pdl=plan.pdl
                )
        else:
            self._matvec(plan, weight, x, self.h, residual=self.h)
            if "small" in plan.parts and plan.norms == "seam":
                rms_norm(self.h, self.norm, out=self.x, pdl=plan.pdl)

    def _attend(self, plan: Plan, a: AttentionShape, layer: LayerWeights) -> None:
        heads: dict[str, Any] = dict(
            position=self.position, inv_freq=layer.inv_freq, num_heads=a.heads, q_norm=layer.head_norm,
            k_norm=layer.head_norm, v_norm=layer.value_norm, value_is_key=a.value_is_key, pdl=plan.pdl,
        )  # fmt: skip
        if plan.attention == "fused":
            if "attention" in plan.parts:
                decode_attention(
                    self.qkv[a], layer.keys, layer.values, row=self.rows[a], kv_len=self.lengths[a],
                    scale=a.head_dim**-0.5, out=self.context[a], **heads,
                )  # fmt: skip
            return
        if "small" in plan.parts:
            qk_norm_rope_cache_write(self.qkv[a], layer.keys, layer.values, ring=a.ring, q_out=self.q[a], **heads)
        if "attention" in plan.parts:
            launch_splitk(
                self.q[a], layer.keys, layer.values, self.context[a], None, is_causal=False,
                scale=a.head_dim**-0.5, kv_len=self.lengths[a], window=None, config=plan.attention,
                kv_len_settled=True,
            )  # fmt: skip

    def step(self, plan: Plan) -> torch.Tensor:
        """One token: logits [1, vocab] fp32. Buffers of parts left out keep their random values."""
        prologue = plan.norms == "prologue"
        norm, source = (self.norm, self.h) if prologue else (None, self.x)
        self.h.copy_(self.embedding)
        if "small" in plan.parts and not prologue:
            rms_norm(self.h, self.norm, out=self.x)
        for a, layer in zip(self.attention, self.layers, strict=True):
            self._matvec(plan, layer.qkv, source, self.qkv[a], norm=norm)
            self._attend(plan, a, layer)
            self._block_end(plan, layer.o, self.context[a].view(1, -1), None)
            self._gated(plan, layer, source)
            self._block_end(plan, layer.down, self.act, self.scalar)
        self._matvec(plan, self.head, source, self.logits, norm=norm, softcap=self.shape.softcap)
        return self.logits
