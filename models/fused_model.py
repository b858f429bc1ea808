"""Swaps at layer level: every decoder layer, the final norm and the head become their fused forms.

The Hugging Face model's own loop still runs them, so there is one forward; the rotary angles that it computes for all
layers are skipped, since no fused layer asks for them.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import nn

from kernels.gated import Activation
from kernels.matvec import DenseWeight, matmul, matvec
from models.family import Family
from models.fused_layer import FusedDecoderLayer, LayerRecipe, Rope, Stream, norm_of
from models.spec import LayerKind, ModelSpec
from models.swap import SwapReport, SwapRow

HF_LAYER_TYPE = {"full": "full_attention", "sliding": "sliding_attention"}
ACTIVATIONS: dict[str, Activation] = {"gelu_pytorch_tanh": "gelu_tanh", "silu": "silu"}
WRAPPER = ".hf."  # what wrapping a layer adds to the names of its parameters


def hf_name(parameter: str) -> str:
    """The Hugging Face name of a parameter of a fused model."""
    return parameter.replace(WRAPPER, ".")


class TakenNorm(nn.Module):
    """Stands for the final norm, whose work the last fused layer has done; holds its weight under the same name."""

    def __init__(self, hf_norm: Any):
        super().__init__()
        self.weight = hf_norm.weight
        self.eps = norm_of(hf_norm, 0.0).eps

    def forward(self, stream: Stream) -> torch.Tensor:
        return stream.x


class FusedHead(nn.Module):
    """lm_head of one position as a matvec with float32 logits; of more positions as the plain product."""

    def __init__(self, hf_head: Any, *, pdl: bool):
        super().__init__()
        self.weight = hf_head.weight
        self.pdl = pdl

    @cached_property
    def _matrix(self) -> DenseWeight:
        return DenseWeight(self.weight)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.shape[1] == 1:
            return matvec(self._matrix, hidden_states, out_dtype=torch.float32, pdl=self.pdl)
        return matmul(self._matrix, hidden_states)


class UnusedRotary(nn.Module):
    """Stands for Hugging Face's rotary embedding: fused layers take their angles from the device position instead."""

    def __init__(self, hf_rotary: Any):
        super().__init__()
        self.hf = hf_rotary

    def forward(self, *_unused: Any) -> None:
        return None

    def rope(self, kind: LayerKind) -> Rope:
        """Frequencies and scaling of one layer kind; a model with one kind of layers keeps them without a prefix."""
        prefix = f"{HF_LAYER_TYPE[kind]}_" if hasattr(self.hf, f"{HF_LAYER_TYPE[kind]}_inv_freq") else ""
        return Rope(
            inv_freq=getattr(self.hf, f"{prefix}inv_freq"),
            attention_scaling=float(getattr(self.hf, f"{prefix}attention_scaling")),
        )


def fuse_layers(model: Any, family: Family, spec: ModelSpec, *, pdl: bool, fuse_attention: bool = True) -> SwapReport:
    """Wrap every decoder layer (attention already swapped) and replace final norm and head, in place.

    The model may still be on the meta device. It must then be filled with `projection_packs` and `hf_name`.
    `fuse_attention`: see FusedDecoderLayer.
    """
    offset = 1.0 if family.unit_offset_norms else 0.0
    recipe = LayerRecipe(ACTIVATIONS[family.activation], offset, family.sandwich_norms)
    body = model.model
    body.rotary_emb = UnusedRotary(body.rotary_emb)
    body.norm = TakenNorm(body.norm)
    hf_layers = list(body.layers)
    next_norms = [layer.input_layernorm for layer in hf_layers[1:]] + [body.norm]
    rows = []
    for index, (old, next_norm, attention) in enumerate(zip(hf_layers, next_norms, spec.layers, strict=True)):
        fused = body.layers[index] = FusedDecoderLayer(
            old, next_norm, recipe, body.rotary_emb, fuse_attention=fuse_attention, pdl=pdl
        )
        kernels, why = "matvec", "one token at a time; prefill through cuBLAS"
        if fused.fuses_attention:
            # The attention's own row gives the route, measured for the kernel that this one stands in for.
            kernels, why = (
                "matvec, decode_attention",
                "one token at a time, its split-K included; prefill through cuBLAS",
            )
        rows.append(SwapRow(index, attention.kind, "layer", type(old).__name__, "FusedDecoderLayer", kernels, why))
    model.lm_head = FusedHead(model.lm_head, pdl=pdl)
    return SwapReport(tuple(rows))
