"""`attn_implementation="routing_sdpa"` for any Hugging Face model: import this module once and name it.

    import models.hf_attention_interface
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="routing_sdpa")

Masks are those of Hugging Face's own "sdpa": None where causality says everything, else boolean.
"""

# ruff: noqa: I001

from __future__ import annotations

from typing import Any

import torch

import models.hf_guard  # noqa: F401  before transformers, always
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from kernels.sdpa import sdpa

NAME = "routing_sdpa"


def routing_sdpa_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Hugging Face's attention call on our router: query [B, H, L_q, D], key and value [B, K, L_kv, D].

    Returns (context [B, L_q, H, D], None). Training, dropout and learned position biases go to Hugging Face's own
    "sdpa", because our kernels have no backward pass and take no bias.
    """
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if needs_gradient or dropout > 0.0 or kwargs.get("position_bias") is not None or value.shape != key.shape:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            is_causal=is_causal,
            **kwargs,
        )
    L_q = query.shape[2]
    wanted = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(wanted) and attention_mask is None and L_q > 1
    # Causal without a mask over more keys than queries is Hugging Face's prefill into an empty static cache: the keys
    # beyond the queries are not filled yet.
    filled = L_q if causal and key.shape[2] > L_q else None
    context = sdpa(query, key, value, attention_mask, is_causal=causal, scale=scaling, enable_gqa=True, kv_len=filled)
    return context.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, routing_sdpa_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
