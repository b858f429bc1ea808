"""The standard kernel against the fp32 twin: on a GPU compiled, without one in triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from kernels.sdpa import StandardConfig, sdpa_reference, sdpa_standard
from kernels.sdpa.standard import launch_standard

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = StandardConfig(block_m=32, block_n=16)
TMA = StandardConfig(block_m=32, block_n=16, tma=True)
NAN = float("nan")


def draw(B=1, H=4, K=2, L_q=100, L_kv=100, D=64, dtype=torch.float32):
    """Fresh query, key and value on the device under test."""
    make = lambda *size: torch.randn(*size, device=DEVICE).to(dtype)  # noqa: E731
    return make(B, H, L_q, D), make(B, K, L_kv, D), make(B, K, L_kv, D)


def check(q, k, v, mask=None, *, is_causal=False, kv_len=None, window=None, config=SMALL):
    """Run the kernel on a poisoned output and compare it with the twin's fp32 answer."""
    out = torch.full_like(q, NAN)
    want = sdpa_reference(q.float(), k.float(), v.float(), mask, is_causal=is_causal, kv_len=kv_len, window=window)
    launch_standard(
        q, k, v, out, mask, is_causal=is_causal, scale=q.shape[-1] ** -0.5, kv_len=kv_len, window=window, config=config
    )
    tolerance = {"atol": 2e-5, "rtol": 1e-4} if q.dtype == torch.float32 else {"atol": 2e-3, "rtol": 2e-3}
    torch.testing.assert_close(out.float(), want, **tolerance)
    return out


@pytest.fixture(params=[SMALL, TMA], ids=["pointers", "tma"])
def config(request):
    return request.param


def device_length(n):
    return torch.tensor(n, dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("H", "K"), [(2, 2), (4, 2), (10, 2), (8, 1)])
@pytest.mark.parametrize("L", [1, 63])
def test_every_group_size_and_odd_lengths(H, K, L, causal, config):
    check(*draw(H=H, K=K, L_q=L, L_kv=L), is_causal=causal, config=config)


@pytest.mark.parametrize("D", [64, 80, 96, 112, 128, 256, 512])
def test_every_head_dim(D, config):
    check(*draw(D=D, L_q=33, L_kv=33), is_causal=True, config=config)


@pytest.mark.parametrize("filled", [1, 20, 63, 64, 99, 100])
def test_a_chunk_of_queries_at_the_end_of_the_valid_rows(filled):
    """Bottom-right alignment; with fewer keys than queries the first queries see nothing and give zeros."""
    q, k, v = draw(L_q=30)
    k[:, :, filled:], v[:, :, filled:] = NAN, NAN
    out = check(q, k, v, is_causal=True, kv_len=device_length(filled))
    assert (out[:, :, : max(0, 30 - filled)] == 0).all()
    check(q, k, v, kv_len=device_length(filled))
    check(q, k, v, is_causal=True, kv_len=filled, config=TMA)


@pytest.mark.parametrize("window", [1, 16, 33, 99, 101])
@pytest.mark.parametrize("L_q", [100, 37])
def test_windows(window, L_q, config):
    check(*draw(L_q=L_q), window=window, config=config)
    check(*draw(L_q=L_q), window=window, kv_len=device_length(90))


def test_masks_broadcast_without_a_copy():
    q, k, v = draw(B=2, L_q=33)
    boolean = torch.rand(2, 1, 33, 100, device=DEVICE) < 0.5
    boolean[1, 0, 2] = False  # a row that sees nothing
    for mask in (boolean, torch.randn(4, 1, 100, device=DEVICE), boolean[0, 0, 0]):
        check(q, k, v, mask)
        check(q, k, v, mask, config=TMA)
        check(q, k, v, mask, is_causal=True, window=40, kv_len=device_length(95))


def test_half_precision_and_odd_strides():
    check(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in draw(B=2, dtype=torch.float16)), is_causal=True)


def test_huge_logits_survive():
    """Whole numbers, so that the logits (about 1e5) are exact and ties stay ties in any order of summation."""
    q, k, v = draw()
    check(q.mul(2).round() * 1e4, k.mul(2).round(), v, is_causal=True)


def test_a_head_dim_it_cannot_take_is_refused():
    with pytest.raises(ValueError, match="multiple of 16"):
        sdpa_standard(*draw(D=72))
