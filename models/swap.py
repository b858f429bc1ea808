"""Replaces modules of a Hugging Face model by ours, and says which, layer by layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from models.attention import RoutedAttention, layer_routes
from models.cache import KVCaches
from models.spec import ModelSpec

AttentionMode = Literal["hf", "standard", "splitk", "routed"]


@dataclass(frozen=True)
class SwapRow:
    """One replaced (or kept) module: where it is, what it was, what it is now, and the kernel it decodes with."""

    layer: int
    kind: str
    module: str
    old: str
    new: str
    kernel: str
    why: str


@dataclass(frozen=True)
class SwapReport:
    """Every row of the swap; `by_kind` is the short form for the run's card."""

    rows: tuple[SwapRow, ...]

    def __add__(self, other: SwapReport) -> SwapReport:
        return SwapReport(self.rows + other.rows)

    def by_kind(self) -> dict[str, str]:
        """Layer kind -> "50 x RoutedAttention, splitk: why", in order of appearance."""
        counts = Counter((row.kind, row.new, row.kernel, row.why) for row in self.rows)
        lines: dict[str, str] = {}
        for (kind, new, kernel, why), count in counts.items():
            line = f"{count} x {new}, {kernel}: {why}"
            lines[kind] = f"{lines[kind]}; {line}" if kind in lines else line
        return lines


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a Hugging Face causal LM."""
    layers = model.model.layers  # type: ignore[union-attr]
    assert isinstance(layers, nn.ModuleList)
    return layers


def swap_attention(
    model: nn.Module, spec: ModelSpec, caches: KVCaches | None, mode: AttentionMode, *, pdl: bool = False
) -> SwapReport:
    """Replace the self_attn of every decoder layer of a Hugging Face causal LM (in place) by RoutedAttention.

    The model may still be on the meta device: no parameter is read or copied. Without caches nothing is replaced.
    `pdl` allows dependent launch where the measured route asks for it.
    """
    rows = []
    for index, (layer, attention) in enumerate(zip(decoder_layers(model), spec.layers, strict=True)):
        old: Any = layer.self_attn
        if caches is None:
            new, kernel, why = old, "hf", "asked for by --attention hf"
        else:
            memory = caches.layers[index].keys
            routes = layer_routes(
                attention,
                caches.ctx_size,
                memory.dtype,
                memory.device,
                name=None if mode == "routed" else mode,
                pdl=pdl,
            )
            new = layer.self_attn = RoutedAttention(old, attention, caches, index, routes)
            kernel, why = routes.decode.kernel, routes.decode.why
            if routes.prefill.kernel != kernel:
                why += f"; prefill {routes.prefill.kernel}"
        rows.append(SwapRow(index, attention.kind, "self_attn", type(old).__name__, type(new).__name__, kernel, why))
    return SwapReport(tuple(rows))
