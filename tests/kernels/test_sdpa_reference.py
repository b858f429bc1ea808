"""The plain-torch twin against torch's own attention and against per-row sums written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels.sdpa import sdpa, sdpa_reference


def draw(B=1, H=4, K=2, L_q=1, L_kv=63, D=64, dtype=torch.float32, seed=0):
    """Fresh query, key and value for one call."""
    generator = torch.Generator().manual_seed(seed)
    make = lambda *size: torch.randn(*size, generator=generator).to(dtype)  # noqa: E731
    return make(B, H, L_q, D), make(B, K, L_kv, D), make(B, K, L_kv, D)


@pytest.mark.parametrize(("H", "K"), [(4, 4), (4, 2), (10, 2), (8, 1)])
@pytest.mark.parametrize("L", [1, 63, 257])
def test_agrees_with_torch(H, K, L):
    q, k, v = draw(B=2, H=H, K=K, L_q=L, L_kv=L)
    for causal in (False, True):
        want = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
        torch.testing.assert_close(sdpa(q, k, v, is_causal=causal, enable_gqa=True), want)


def test_causal_is_aligned_bottom_right():
    """A chunk of queries at the end of a longer sequence sees what it would have seen inside the whole sequence."""
    q, k, v = draw(L_q=100, L_kv=100)
    whole = sdpa_reference(q, k, v, is_causal=True)
    torch.testing.assert_close(sdpa_reference(q[:, :, 63:], k, v, is_causal=True), whole[:, :, 63:])


@pytest.mark.parametrize("length", [1, 63, 100])
def test_rows_beyond_kv_len_do_not_leak(length):
    q, k, v = draw(L_kv=100)
    want = sdpa_reference(q, k[:, :, :length], v[:, :, :length])
    k[:, :, length:], v[:, :, length:] = float("nan"), float("nan")
    for kv_len in (length, torch.tensor([length]), torch.tensor(length, dtype=torch.int32)):
        torch.testing.assert_close(sdpa(q, k, v, kv_len=kv_len), want)


@pytest.mark.parametrize("window", [1, 7, 99, 100, 101])
def test_window_equals_an_explicit_mask(window):
    q, k, v = draw(L_q=100, L_kv=100)
    i, j = torch.arange(100)[:, None], torch.arange(100)[None]
    want = F.scaled_dot_product_attention(q, k, v, (j <= i) & (j > i - window), enable_gqa=True)
    torch.testing.assert_close(sdpa(q, k, v, window=window), want)


def test_additive_and_boolean_masks():
    q, k, v = draw(B=2, L_q=5)
    boolean = torch.rand(2, 1, 5, 63) < 0.5
    boolean[..., 0] = True
    additive = torch.randn(4, 1, 63)
    for mask in (boolean, additive, torch.zeros(5, 63).masked_fill(~boolean[0, 0], -torch.inf)):
        want = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
        torch.testing.assert_close(sdpa(q, k, v, mask), want)


def test_a_row_that_sees_nothing_is_zero():
    q, k, v = draw(L_q=4)
    mask = torch.ones(4, 63, dtype=torch.bool)
    mask[2] = False
    result = sdpa(q, k, v, mask)
    assert (result[:, :, 2] == 0).all()
    assert result.isfinite().all()
    assert (sdpa(q, k, v, torch.zeros(4, 63).masked_fill(~mask, -torch.inf))[:, :, 2] == 0).all()
    assert (sdpa(q, k, v, kv_len=0) == 0).all()


def test_huge_logits_survive():
    q, k, v = draw(L_q=3)
    result = sdpa(q * 1e4, k, v)
    torch.testing.assert_close(result, F.scaled_dot_product_attention(q * 1e4, k, v, enable_gqa=True))


def test_out_is_written_and_returned():
    q, k, v = draw(L_q=3)
    out = torch.full_like(q, float("nan"))
    assert sdpa(q, k, v, out=out) is out
    torch.testing.assert_close(out, sdpa(q, k, v))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: ((q[:, :3], k, v), {}), "multiple of key-value heads"),
        (lambda q, k, v: ((q, k, v), {"dropout_p": 0.1}), "dropout_p must be 0.0"),
        (lambda q, k, v: ((q, k.half(), v), {}), "one dtype"),
        (lambda q, k, v: ((q.double(), k.double(), v.double()), {}), "bfloat16, float16 or float32"),
        (lambda q, k, v: ((q.to("meta"), k, v), {}), "one device"),
        (lambda q, k, v: ((q, k, v[:, :, 1:]), {}), "key and value of one shape"),
        (lambda q, k, v: ((q[..., :32], k, v), {}), "one head_dim"),
        (lambda q, k, v: ((q[0], k, v), {}), "4-dimensional"),
        (lambda q, k, v: ((q, k, v), {"kv_len": 64}), "kv_len <= 63"),
        (lambda q, k, v: ((q, k, v), {"kv_len": torch.tensor([1.0])}), "one int32 or int64"),
        (lambda q, k, v: ((q, k, v), {"kv_len": torch.tensor([1, 2])}), "one int32 or int64"),
        (lambda q, k, v: ((q, k, v), {"scale": 0.0}), "scale > 0"),
        (lambda q, k, v: ((q, k, v), {"window": 0}), "window >= 1"),
        (lambda q, k, v: ((q, k, v, torch.ones(1, 62, dtype=torch.bool)), {}), "broadcastable"),
        (lambda q, k, v: ((q, k, v, torch.ones(1, 63, dtype=torch.int32)), {}), "boolean or floating"),
        (lambda q, k, v: ((q, k, v), {"out": q[:, :2]}), "out like query"),
        (lambda q, k, v: ((q.transpose(2, 3).contiguous().transpose(2, 3), k, v), {}), "contiguous last dimension"),
    ],
)
def test_bad_calls_are_refused(change, message):
    arguments, options = change(*draw(L_q=2))
    with pytest.raises(ValueError, match=message):
        sdpa(*arguments, **options)
