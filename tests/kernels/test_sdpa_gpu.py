"""The compiled kernels on a GPU: the full matrix in bf16, and what only a GPU can show (graphs, speed, many replays).

A bf16 result passes when its distance from the fp32 truth is at most twice that of torch's own bf16 result.
"""

from __future__ import annotations

import statistics

import pytest
import torch
import torch.nn.functional as F

from kernels.sdpa import SplitKConfig, call_shape, route, sdpa, sdpa_reference, sdpa_splitk, sdpa_standard

pytestmark = pytest.mark.gpu

LENGTHS = (1, 63, 64, 255, 256, 257, 1000, 1024, 4096, 65536)
KERNELS = {"standard": sdpa_standard, "splitk": sdpa_splitk, "routed": sdpa}


def draw(B, H, K, L_q, L_kv, D, dtype=torch.bfloat16):
    make = lambda *size: torch.randn(*size, device="cuda", dtype=dtype)  # noqa: E731
    return make(B, H, L_q, D), make(B, K, L_kv, D), make(B, K, L_kv, D)


def assert_close_as_torch(got, theirs, truth):
    """Norm and maximum of our error within twice torch's, beside one bf16 rounding of the largest value."""
    ours, torchs = got.float() - truth, theirs.float() - truth
    assert got.isfinite().all()
    assert ours.norm() <= 2 * torchs.norm() + 1e-6
    assert ours.abs().max() <= 2 * torchs.abs().max() + 2**-9 * truth.abs().max()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("H", "K", "D"),
    [(H, K, D) for H, K in ((4, 4), (8, 4), (16, 4), (10, 2), (16, 2), (32, 2), (8, 1)) for D in (128, 256)]
    + [(32, 4, 512), (8, 8, 512), (32, 16, 64), (5, 1, 64)],
)
def test_decode_matrix(H, K, D, kernel):
    for L in LENGTHS:
        for B in (1, 2, 4) if L <= 4096 else (1,):
            q, k, v = draw(B, H, K, 1, L, D)
            truth = sdpa_reference(q.float(), k.float(), v.float())
            theirs = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            out = torch.full_like(q, float("nan"))
            assert_close_as_torch(KERNELS[kernel](q, k, v, out=out), theirs, truth)
            filled = max(1, L - L // 3)
            k[:, :, filled:], v[:, :, filled:] = float("nan"), float("nan")
            length = torch.tensor([filled], device="cuda")
            theirs = F.scaled_dot_product_attention(q, k[:, :, :filled], v[:, :, :filled], enable_gqa=True)
            truth = sdpa_reference(q.float(), k[:, :, :filled].float(), v[:, :, :filled].float())
            assert_close_as_torch(KERNELS[kernel](q, k, v, kv_len=length), theirs, truth)


EARLY = {"reduce": "apart", "overlap": True, "dependent": True, "prefetch_rows": 64}


@pytest.mark.parametrize(
    "reduction", [{"reducers": 4}, {"reduce": "apart"}, {"reduce": "apart", "overlap": True}, EARLY]
)
@pytest.mark.parametrize(("H", "K", "D"), [(32, 16, 256), (16, 2, 256), (32, 4, 512)])
def test_every_reduction_gives_the_same_many_times_over(H, K, D, reduction):
    """500 launches in flight: a missing barrier or a counter left standing shows as a moving result."""
    from kernels.sdpa import Route

    q, k, v = draw(1, H, K, 1, 4096, D)
    truth = sdpa_reference(q.float(), k.float(), v.float())
    theirs = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    chosen = Route("splitk", SplitKConfig(block_n=16, min_rows=16, **reduction), "a test")
    length = torch.tensor([4000], device="cuda")
    for kv_len, want, beside in ((None, truth, theirs), (length, None, None)):
        results = [sdpa(q, k, v, route=chosen, kv_len=kv_len) for _ in range(500)]
        assert all(torch.equal(result, results[0]) for result in results)
        if want is not None:
            assert_close_as_torch(results[0], beside, want)


def test_ring_masks():
    q, k, v = draw(2, 32, 16, 1, 1024, 256)
    mask = torch.rand(2, 1, 1, 1024, device="cuda") < 0.5
    truth = sdpa_reference(q.float(), k.float(), v.float(), mask)
    theirs = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    for kernel in KERNELS.values():
        assert_close_as_torch(kernel(q, k, v, mask), theirs, truth)


@pytest.mark.parametrize("D", [64, 80, 96, 112, 128, 256, 512])
@pytest.mark.parametrize("window", [None, 100, 1024])
def test_prefill(D, window):
    for H, K in ((4, 2), (5, 1)):
        for L_q, L_kv in ((1, 1), (63, 63), (1000, 1000), (300, 1100), (2401, 2401)):
            q, k, v = draw(1, H, K, L_q, L_kv, D)
            truth = sdpa_reference(q.float(), k.float(), v.float(), is_causal=True, window=window)
            i, j = torch.arange(L_q, device="cuda")[:, None] + L_kv - L_q, torch.arange(L_kv, device="cuda")
            mask = (j <= i) & (j > i - (window or L_kv))
            theirs = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
            for kernel in (sdpa_standard, sdpa):
                assert_close_as_torch(kernel(q, k, v, is_causal=True, window=window), theirs, truth)


def test_fp16_and_fp32():
    for dtype in (torch.float16, torch.float32):
        for L_q in (1, 4, 100):
            q, k, v = draw(2, 8, 2, L_q, 300, 128, dtype)
            truth = sdpa_reference(q.double().float(), k.float(), v.float(), is_causal=True)
            for kernel in (sdpa_standard, sdpa, *([sdpa_splitk] if L_q <= 8 else [])):
                got = kernel(q, k, v, is_causal=True).float()
                assert (got - truth).norm() <= (1e-3 if dtype == torch.float16 else 1e-5) * truth.norm()


def test_one_graph_serves_every_length():
    """Replays see kv_len grow, equal eager bit for bit, and never allocate."""
    q, k, v = draw(1, 32, 16, 1, 2048, 256)
    length = torch.tensor([1], device="cuda")
    out = torch.empty_like(q)
    run = lambda: sdpa(q, k, v, kv_len=length, out=out)  # noqa: E731
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    for filled in (1, 2, 63, 256, 257, 1024, 2047, 2048, 5):
        length.fill_(filled)
        before = torch.cuda.memory_allocated()
        graph.replay()
        assert torch.cuda.memory_allocated() == before
        replayed = out.clone()
        assert torch.equal(run(), replayed)
        torch.testing.assert_close(
            replayed.float(), sdpa_reference(q.float(), k.float(), v.float(), kv_len=filled), atol=2e-2, rtol=2e-2
        )


@pytest.mark.parametrize("settled", [False, True], ids=["", "settled"])
@pytest.mark.parametrize(
    "config",
    [EARLY, {**EARLY, "late_query": True}, {"dependent": True, "prefetch_rows": 32}],
    ids=["apart", "late", "fused"],
)
def test_dependent_launch_sees_what_its_predecessors_wrote(config, settled):
    """A chain of steps in one graph: each writes a query, a row of the cache and the length just before attention.

    A settled length is written long before.
    """
    from kernels.sdpa import Route

    chosen = Route("splitk", SplitKConfig(**config), "a test")
    q, k, v = draw(1, 32, 16, 1, 600, 256)
    k[:, :, 500:], v[:, :, 500:] = float("nan"), float("nan")
    new = torch.randn(40, 2, 1, 16, 1, 256, device="cuda", dtype=torch.bfloat16)
    length = torch.tensor([500], device="cuda")

    lengths = torch.arange(501, 541, device="cuda").unsqueeze(-1)

    def step(i, query, keys, values, filled, **how):
        keys.index_copy_(2, filled, new[i, 0])
        values.index_copy_(2, filled, new[i, 1])
        filled.add_(1)
        query.mul_(-1)
        return sdpa(query, keys, values, kv_len=lengths[i] if settled else filled, kv_len_settled=settled, **how)

    state = [x.clone() for x in (q, k, v, length)]
    want = [step(i, *state, route="reference") for i in range(40)]
    warm = [x.clone() for x in (q, k, v, length)]
    step(0, *warm, route=chosen)
    graph, outs = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        outs = [step(i, q, k, v, length, route=chosen) for i in range(40)]
    graph.replay()
    for got, truth in zip(outs, want, strict=True):
        torch.testing.assert_close(got, truth, atol=1e-2, rtol=2e-2)


def test_time_follows_the_valid_rows_not_the_buffer():
    from kernels.timing import graph_times

    q, k, v = draw(1, 16, 2, 1, 131072, 256)
    length = torch.tensor([2000], device="cuda")
    out = torch.empty_like(q)

    def timed(key, value):
        return statistics.median(
            graph_times([lambda: sdpa(q, key, value, kv_len=length, out=out, route="splitk")] * 20)
        )

    assert timed(k, v) <= 1.25 * timed(k[:, :, :2000], v[:, :, :2000])


def test_the_router_takes_splitk_for_decode():
    q, k, _ = draw(1, 32, 16, 1, 1024, 256)
    chosen = route(call_shape(q, k, kv_len=torch.tensor([1], device="cuda")))
    assert chosen.kernel == "splitk", chosen
