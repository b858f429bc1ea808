"""decode_attention against its twin, which is itself tested against Hugging Face by its two halves."""

from __future__ import annotations

import pytest
import torch

from kernels.decode_attention import DecodeAttentionConfig, decode_attention, reference
from kernels.decode_attention.entry import launch_decode_attention
from kernels.norm import Norm
from kernels.pdl import supports_pdl

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, *([torch.bfloat16] if torch.cuda.is_available() else [])]
# name: query heads, key-value heads, head dim, value_is_key
SHAPES = {"gemma sliding": (4, 2, 64, False), "gemma4 full": (8, 1, 128, True), "gqa5": (10, 2, 32, False)}
ONE_TILE = DecodeAttentionConfig(block_n=64, min_rows=16)
AHEAD = 16 if torch.cuda.is_available() else 0  # the interpreter knows no assembly, so no prefetch
LOOPED = DecodeAttentionConfig(block_n=16, min_rows=16, prefetch_rows=AHEAD)
LATE = DecodeAttentionConfig(block_n=16, min_rows=16, prefetch_rows=AHEAD, preload=False)


def case(name: str, capacity: int, dtype: torch.dtype) -> tuple[list[torch.Tensor], dict]:
    """[qkv, keys, values] and the options of a call; rows that nobody may read hold NaN only where a test puts them."""
    H, KV, D, value_is_key = SHAPES[name]
    torch.manual_seed(len(name) + capacity)
    qkv = torch.randn((H + KV * (1 if value_is_key else 2)) * D, device=DEVICE).to(dtype)
    caches = torch.randn(2, 1, KV, capacity, D, device=DEVICE).to(dtype)
    inv_freq = 1.0 / 10000.0 ** (torch.arange(0, D, 2, device=DEVICE) / D)
    if value_is_key:
        inv_freq[D // 8 :] = 0.0  # proportional RoPE: only the first quarter turns
    options = dict(
        inv_freq=inv_freq,
        scale=D**-0.5,
        q_norm=Norm(torch.randn(D, device=DEVICE).to(dtype), 1e-6, 1.0),
        k_norm=Norm(torch.randn(D, device=DEVICE).to(dtype), 1e-6, 1.0),
        v_norm=Norm(None, 1e-6) if value_is_key else None,
        value_is_key=value_is_key,
        attention_scaling=1.25,
    )
    return [qkv, caches[0], caches[1]], options


def clock(position: int, capacity: int) -> dict[str, torch.Tensor]:
    """Position, row and kv_len as a ring of `capacity` rows has them."""
    return dict(
        position=torch.tensor([position], device=DEVICE),
        row=torch.tensor([position % capacity], device=DEVICE),
        kv_len=torch.tensor([min(position + 1, capacity)], device=DEVICE, dtype=torch.int32),
    )


def wide(tensors: list[torch.Tensor], options: dict) -> tuple[list[torch.Tensor], dict]:
    """The same call in fp32."""
    norms = {
        name: norm and Norm(norm.weight if norm.weight is None else norm.weight.float(), norm.eps, norm.offset)
        for name, norm in options.items()
        if name.endswith("_norm")
    }
    return [tensor.float() for tensor in tensors], options | norms


def distance(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found.double() - truth.double()).norm() / truth.double().norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [ONE_TILE, LOOPED, LATE], ids=["one tile", "looped", "late"])
@pytest.mark.parametrize("position", [0, 1, 15, 16, 62, 63, 64, 250, 100_003])
@pytest.mark.parametrize("name", SHAPES)
def test_kernel_equals_twin(name: str, position: int, config: DecodeAttentionConfig, dtype: torch.dtype) -> None:
    """Filling and full rings, first and last row of a stretch; rows beyond kv_len hold NaN, and so does the new row."""
    H, capacity = SHAPES[name][0], 211
    tensors, options = case(name, capacity, dtype)
    at = clock(position, capacity)
    for cache in tensors[1:]:
        cache[:, :, int(at["row"])] = float("nan")
        cache[:, :, int(at["kv_len"]) :] = float("nan")
    copies, truth_options = wide([tensor.clone() for tensor in tensors], options)
    truth = reference.decode_attention(*copies, **at, num_heads=H, **truth_options)
    rounded = [tensor.clone() for tensor in tensors]
    expected = reference.decode_attention(*rounded, **at, num_heads=H, **options)
    out = torch.full_like(expected, float("nan"))
    launch_decode_attention(*tensors, out, **at, **options, config=config, workspace=None, pdl=supports_pdl(DEVICE))
    # The twin rounds its result alone, the tensor cores' weights are bf16, too: one spacing of bf16 is always allowed.
    allowed = 1e-5 if dtype == torch.float32 else max(2 * distance(expected, truth), 4e-3)
    assert distance(out, truth) <= allowed
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    for found, wanted in zip(tensors[1:], rounded[1:], strict=True):
        torch.testing.assert_close(found.float(), wanted.float(), rtol=tolerance, atol=tolerance, equal_nan=True)


def test_logits_of_ten_thousand_survive() -> None:
    """True online softmax: the maximum lies in one split, everything else weighs nothing."""
    tensors, options = case("gemma sliding", 211, torch.float32)
    tensors[1] *= 3e3
    at = clock(1000, 211)
    copies = [tensor.clone() for tensor in tensors]
    expected = reference.decode_attention(*copies, **at, num_heads=4, **options)
    out = torch.full_like(expected, float("nan"))
    launch_decode_attention(*tensors, out, **at, **options, config=LOOPED, workspace=None, pdl=False)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_entry_names_what_does_not_fit() -> None:
    tensors, options = case("gemma sliding", 32, torch.float32)
    with pytest.raises(ValueError, match="5 query heads over 2 key-value heads x 64"):
        decode_attention(*tensors, **clock(0, 32), num_heads=5, **options)
    with pytest.raises(ValueError, match="do not fit together"):
        decode_attention(tensors[0], tensors[1], tensors[2][:, :, :3], **clock(0, 32), num_heads=4, **options)
