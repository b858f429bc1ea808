"""A few small launches of every decode kernel, to run under compute-sanitizer (memcheck, racecheck).

compute-sanitizer --tool memcheck python3 scripts/sanitize_sdpa.py
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kernels.decode_attention import DecodeAttentionConfig, decode_attention, reference
from kernels.norm import Norm
from kernels.sdpa import Route, SplitKConfig, StandardConfig, sdpa, sdpa_reference

EARLY = {"reduce": "apart", "overlap": True, "dependent": True, "prefetch_rows": 64}
ROUTES = [
    Route("splitk", SplitKConfig(block_n=16, min_rows=16), "fused"),
    Route("splitk", SplitKConfig(block_n=16, min_rows=16, reducers=4), "fused in four"),
    Route("splitk", SplitKConfig(block_n=32, **EARLY), "apart"),
    Route("splitk", SplitKConfig(block_n=32, late_query=True, **EARLY), "apart, late queries"),
    Route("standard", StandardConfig(block_m=16, block_n=32), "standard"),
]
TOKENS = [
    DecodeAttentionConfig(block_n=64, num_warps=8),
    DecodeAttentionConfig(block_n=16, min_rows=16, prefetch_rows=64, preload=False),
]
for length in (1, 100, 333):
    query = torch.randn(1, 8, 1, 128, device="cuda", dtype=torch.bfloat16)
    key, value = torch.randn(2, 1, 2, 333, 128, device="cuda", dtype=torch.bfloat16)
    filled = torch.tensor([length], device="cuda")
    for route in ROUTES:
        for settled in (False, True):
            got = sdpa(query, key, value, kv_len=filled, route=route, kv_len_settled=settled)
            torch.testing.assert_close(got, sdpa_reference(query, key, value, kv_len=filled), atol=2e-2, rtol=2e-2)
    qkv = torch.randn(12 * 128, device="cuda", dtype=torch.bfloat16)
    norm = Norm(torch.randn(128, device="cuda", dtype=torch.bfloat16), 1e-6, 1.0)
    token = dict(
        position=torch.tensor([1000], device="cuda"),
        row=torch.tensor([length - 1], device="cuda"),
        kv_len=filled.int(),
        inv_freq=torch.rand(64, device="cuda"),
        num_heads=8,
        scale=0.1,
        q_norm=norm,
        k_norm=norm,
    )
    want = reference.decode_attention(qkv, key.clone(), value.clone(), **token)
    for config in TOKENS:
        got = decode_attention(qkv, key.clone(), value.clone(), **token, config=config, pdl=True)
        torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)
print("all results right")
