"""The split-K kernel against the fp32 twin: on a GPU compiled, without one in triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from kernels.sdpa import SplitKConfig, sdpa_decode_splitk, sdpa_reference
from kernels.sdpa.splitk import interpreting, launch_splitk, make_workspace

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = SplitKConfig(block_n=16, min_rows=16)
APART = SplitKConfig(block_n=16, min_rows=16, reduce="apart")
LATE = SplitKConfig(block_n=16, min_rows=16, reduce="apart", late_query=True)
NAN = float("nan")


def draw(B=1, H=4, K=2, L_q=1, L_kv=300, D=64, dtype=torch.float32):
    """Fresh query, key and value on the device under test."""
    make = lambda *size: torch.randn(*size, device=DEVICE).to(dtype)  # noqa: E731
    return make(B, H, L_q, D), make(B, K, L_kv, D), make(B, K, L_kv, D)


def run(q, k, v, mask=None, *, is_causal=False, kv_len=None, window=None, config=SMALL, scale=None, workspace=None):
    """The kernel itself on a poisoned output, and the twin's fp32 answer."""
    out = torch.full_like(q, NAN)
    want = sdpa_reference(
        q.float(), k.float(), v.float(), mask, is_causal=is_causal, scale=scale, kv_len=kv_len, window=window
    )
    launch_splitk(
        q,
        k,
        v,
        out,
        mask,
        is_causal=is_causal,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        kv_len=kv_len,
        window=window,
        config=config,
        workspace=workspace,
    )
    return out, want


def device_length(n, dtype=torch.int64):
    return torch.tensor([n], dtype=dtype, device=DEVICE)


def test_without_a_gpu_the_kernel_runs_in_the_interpreter():
    assert DEVICE.type == "cuda" or interpreting()


@pytest.mark.parametrize("config", [SMALL, APART, LATE], ids=["fused", "apart", "late"])
@pytest.mark.parametrize(("H", "K"), [(2, 2), (4, 2), (8, 2), (10, 2), (8, 1), (16, 1)])
def test_every_group_size(H, K, config):
    got, want = run(*draw(H=H, K=K, L_kv=257), config=config)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("config", [SMALL, APART, LATE], ids=["fused", "apart", "late"])
@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 63, 64, 255, 256, 257, 299, 300])
def test_every_length_and_nan_beyond_it(length, config):
    q, k, v = draw(B=2)
    k[:, :, length:], v[:, :, length:] = NAN, NAN
    got, want = run(q, k, v, kv_len=device_length(length), config=config)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("config", [SMALL, LATE], ids=["fused", "late"])
@pytest.mark.parametrize("D", [16, 32, 128, 256, 512])
def test_every_head_dim(D, config):
    got, want = run(*draw(D=D, L_kv=100), config=config)
    torch.testing.assert_close(got, want)


def test_half_precision_is_within_twice_torchs_own_distance():
    q, k, v = draw(dtype=torch.float16, L_kv=1000, D=128)
    got, want = run(q, k, v, config=SplitKConfig(block_n=64, min_rows=64))
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert (got - want).abs().max() <= 2 * (theirs - want).abs().max() + 1e-5


@pytest.mark.parametrize("window", [1, 63, 64, 65, 299, 300, 1000])
@pytest.mark.parametrize("L_q", [1, 4])
def test_window_over_a_full_cache(window, L_q):
    q, k, v = draw(L_q=L_q)
    k[:, :, 290:], v[:, :, 290:] = NAN, NAN
    got, want = run(q, k, v, window=window, kv_len=device_length(290, torch.int32))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("config", [SMALL, APART, LATE], ids=["fused", "apart", "late"])
@pytest.mark.parametrize("L_q", [2, 5, 8])
def test_several_causal_queries(L_q, config):
    """As the verification of drafted tokens needs: each query sees one key more than the one before."""
    got, want = run(*draw(L_q=L_q, H=10), is_causal=True, kv_len=device_length(255), config=config)
    torch.testing.assert_close(got, want)


def test_more_queries_than_keys():
    got, want = run(*draw(L_q=8), is_causal=True, kv_len=device_length(3))
    assert (got[:, :, :5] == 0).all()
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("config", [SMALL, APART, LATE], ids=["fused", "apart", "late"])
def test_masks_broadcast_without_a_copy(config):
    q, k, v = draw(B=2, L_q=3)
    boolean = torch.rand(2, 1, 3, 300, device=DEVICE) < 0.5
    boolean[1, 0, 2] = False  # a row that sees nothing
    for mask in (boolean, torch.randn(4, 1, 300, device=DEVICE), torch.randn(3, 300, device=DEVICE), boolean[0, 0, 0]):
        got, want = run(q, k, v, mask, config=config)
        torch.testing.assert_close(got, want)


def test_huge_logits_survive():
    """Whole numbers, so that the logits (about 1e5) are exact and ties stay ties in any order of summation."""
    q, k, v = draw()
    got, want = run(q.mul(2).round() * 1e4, k.mul(2).round(), v)
    torch.testing.assert_close(got, want)
    assert got.isfinite().all()


def test_any_strides_with_a_contiguous_last_dimension():
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in draw(B=2, L_q=2))
    got, want = run(q, k[:, :, 10:200], v[:, :, 10:200])
    assert not k[:, :, 10:200].is_contiguous()
    torch.testing.assert_close(got, want)


def test_counters_are_zero_again_after_each_launch():
    """A graph replays the launch without a host in between: a counter left standing would break the second replay."""
    q, k, v = draw()
    workspace = make_workspace(2, 2, 64, 8, DEVICE)
    for length in (300, 17, 1, 256):
        got, want = run(q, k, v, kv_len=device_length(length), workspace=workspace)
        torch.testing.assert_close(got, want)
        assert (workspace.arrivals == 0).all()


def test_a_workspace_of_other_sizes_is_refused():
    q, k, v = draw()
    with pytest.raises(ValueError, match="workspace for 2 heads x 2 rows"):
        run(q, k, v, workspace=make_workspace(2, 4, 64, 8, DEVICE))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"L_q": 2}, "L_q <= 1"), ({"D": 96}, "power of two"), ({"H": 256, "K": 1}, "at most 128 queries")],
)
def test_calls_it_cannot_take_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        sdpa_decode_splitk(*draw(**sizes))
