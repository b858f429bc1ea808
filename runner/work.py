"""How much work a model is, counted from its spec: the denominators of MBU and MFU."""

from __future__ import annotations

from models.spec import AttentionSpec, ModelSpec


def layer_weights(spec: ModelSpec, layer: AttentionSpec) -> int:
    """Matrix elements of one decoder layer: q, k, v, o and the gated MLP's gate, up, down. Norms are left out."""
    projections = 1 if layer.value_is_key else 2
    attention = 2 * layer.num_heads * layer.head_dim + projections * layer.num_kv_heads * layer.head_dim
    return spec.hidden_size * (attention + 3 * spec.intermediate_size)


def head_weights(spec: ModelSpec) -> int:
    """Matrix elements of lm_head, which every token reads in full whether or not it is tied to the embedding."""
    return spec.hidden_size * spec.vocab_size


def decode_weights(spec: ModelSpec) -> int:
    """Matrix elements that decoding one token reads."""
    return sum(layer_weights(spec, layer) for layer in spec.layers) + head_weights(spec)


def prefill_flops(spec: ModelSpec, prompt_tokens: int) -> int:
    """Floating-point operations (2 per multiply-add) of a prefill that computes logits for its last position only.

    Attention counts the keys each query really sees: 2 products of head_dim for each, for every query head.
    """
    matrices = prompt_tokens * sum(layer_weights(spec, layer) for layer in spec.layers) + head_weights(spec)
    attention = sum(
        2 * layer.num_heads * layer.head_dim * _visible_pairs(prompt_tokens, layer.window) for layer in spec.layers
    )
    return 2 * (matrices + attention)


def mean_kv_bytes(spec: ModelSpec, first_context: int, steps: int, itemsize: int) -> float:
    """Mean over `steps` decode steps of the keys and values read, the first at `first_context` positions."""
    # Linear in the context except where a window fills up, so sum exactly; steps are few.
    return sum(spec.kv_bytes(first_context + step, itemsize) for step in range(steps)) / steps


def _visible_pairs(length: int, window: int | None) -> int:
    """(query, key) pairs of a causal prefill of `length` tokens where a query sees `window` positions at most."""
    span = length if window is None else min(window, length)
    return span * (span + 1) // 2 + (length - span) * span
