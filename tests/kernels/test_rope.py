"""qk-norm + RoPE + cache write: the twin against Hugging Face's functions, the kernel against the twin."""

from __future__ import annotations

import pytest
import torch

from kernels.norm import Norm
from kernels.rope import qk_norm_rope_cache_write, reference
from kernels.rope.kernel import launch_qk_norm_rope

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# name: query heads, key-value heads, head dim, value_is_key
SHAPES = {"gemma sliding": (4, 2, 32, False), "gemma4 full": (8, 1, 64, True), "gqa5 odd": (10, 2, 24, False)}


def _case(name: str, tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict]:
    H, KV, D, value_is_key = SHAPES[name]
    torch.manual_seed(len(name) + tokens)
    qkv = torch.randn(tokens, (H + KV * (1 if value_is_key else 2)) * D, device=DEVICE).to(dtype)
    caches = torch.full((2, 1, KV, 16, D), 7.0, device=DEVICE, dtype=dtype)
    inv_freq = 1.0 / 10000.0 ** (torch.arange(0, D, 2, device=DEVICE) / D)
    if value_is_key:
        inv_freq[D // 8 :] = 0.0  # proportional RoPE: only the first quarter turns
    norms = dict(
        q_norm=Norm(torch.randn(D, device=DEVICE).to(dtype), 1e-6, 1.0),
        k_norm=Norm(torch.randn(D, device=DEVICE).to(dtype), 1e-6, 1.0),
        v_norm=Norm(None, 1e-6) if value_is_key else None,
    )
    options = dict(inv_freq=inv_freq, value_is_key=value_is_key, attention_scaling=1.25, **norms)
    return qkv, caches[0], caches[1], options


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("tokens", "position", "place"),
    [
        (1, 0, dict(ring=True)),
        (1, 15, dict(ring=False)),
        (1, 100_003, dict(ring=True)),
        (5, 29, dict(ring=True)),
        (6, 1000, dict(ring=False, first_row=9)),
    ],
)
@pytest.mark.parametrize("name", SHAPES)
def test_kernel(name: str, tokens: int, position: int, place: dict, dtype: torch.dtype) -> None:
    H = SHAPES[name][0]
    qkv, keys, values, options = _case(name, tokens, dtype)
    at = torch.tensor([position], device=DEVICE, dtype=torch.int64)
    expected_k, expected_v = keys.clone(), values.clone()
    expected = reference.qk_norm_rope_cache_write(
        qkv, expected_k, expected_v, position=at, num_heads=H, **place, **options
    )
    q = torch.full_like(expected, float("nan"))
    launch_qk_norm_rope(qkv, keys, values, q, position=at, **place, pdl=False, **options)
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    for found, wanted in ((q, expected), (keys, expected_k), (values, expected_v)):
        torch.testing.assert_close(found.float(), wanted.float(), rtol=tolerance, atol=tolerance)


def test_only_the_rows_of_the_tokens_are_written() -> None:
    qkv, keys, values, options = _case("gemma sliding", 3, torch.float32)
    at = torch.tensor([30], device=DEVICE)  # rows 14, 15, 0 of a ring of 16
    q = torch.empty(1, 4, 3, 32, device=DEVICE)
    launch_qk_norm_rope(qkv, keys, values, q, position=at, ring=True, pdl=False, **options)
    untouched = torch.ones(16, dtype=torch.bool)
    untouched[[14, 15, 0]] = False
    for cache in (keys, values):
        assert bool((cache[:, :, untouched] == 7.0).all())
        assert not bool((cache[:, :, ~untouched] == 7.0).all(-1).any())


def test_twin_is_hugging_face_norm_and_rope() -> None:
    """Gemma 4 full layer: K doubles as V before norm and RoPE; proportional RoPE as HF's own init function gives it."""
    from transformers import Gemma4TextConfig
    from transformers.models.gemma4 import modeling_gemma4 as hf

    config = Gemma4TextConfig(
        hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16, global_head_dim=32,
        num_global_key_value_heads=1, attention_k_eq_v=True, num_hidden_layers=6, intermediate_size=64, vocab_size=64,
    )  # fmt: skip
    rope = hf.Gemma4TextRotaryEmbedding(config)
    q_module, k_module, v_module = hf.Gemma4RMSNorm(32), hf.Gemma4RMSNorm(32), hf.Gemma4RMSNorm(32, with_scale=False)
    torch.nn.init.normal_(q_module.weight)
    torch.nn.init.normal_(k_module.weight)
    qkv = torch.randn(1, 5 * 32)
    cos, sin = rope(qkv, torch.tensor([[77]]), "full_attention")
    q, k = qkv.view(1, 1, 5, 32).split([4, 1], dim=2)
    expected_q = hf.apply_rotary_pos_emb(q_module(q), cos, sin, unsqueeze_dim=2).transpose(1, 2)
    expected_k = hf.apply_rotary_pos_emb(k_module(k), cos, sin, unsqueeze_dim=2).transpose(1, 2)
    keys, values = torch.zeros(1, 1, 128, 32), torch.zeros(1, 1, 128, 32)
    found = qk_norm_rope_cache_write(
        qkv, keys, values,
        position=torch.tensor([77]), inv_freq=rope.full_attention_inv_freq, num_heads=4, ring=False,
        q_norm=Norm(q_module.weight, 1e-6), k_norm=Norm(k_module.weight, 1e-6), v_norm=Norm(None, 1e-6),
        value_is_key=True, attention_scaling=rope.full_attention_attention_scaling,
    )  # fmt: skip
    torch.testing.assert_close(found, expected_q, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(keys[:, :, 77], expected_k[:, :, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values[:, :, 77], v_module(k)[:, 0], rtol=1e-5, atol=1e-5)


def test_entry_names_what_does_not_fit() -> None:
    qkv, keys, values, options = _case("gemma sliding", 1, torch.float32)
    at = torch.tensor([0], device=DEVICE)
    with pytest.raises(ValueError, match="9 heads x 32"):
        qk_norm_rope_cache_write(qkv, keys, values, position=at, num_heads=5, ring=True, **options)
    with pytest.raises(ValueError, match="do not fit"):
        qk_norm_rope_cache_write(qkv, keys, values[:, :, :3], position=at, num_heads=4, ring=True, **options)
