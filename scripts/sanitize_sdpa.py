"""A few small launches of every decode kernel, to run under compute-sanitizer (memcheck, racecheck).

compute-sanitizer --tool memcheck python3 scripts/sanitize_sdpa.py
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kernels.sdpa import Route, SplitKConfig, StandardConfig, sdpa, sdpa_reference

EARLY = {"reduce": "apart", "overlap": True, "dependent": True, "prefetch_rows": 64}
ROUTES = [
    Route("splitk", SplitKConfig(block_n=16, min_rows=16), "fused"),
    Route("splitk", SplitKConfig(block_n=16, min_rows=16, reducers=4), "fused in four"),
    Route("splitk", SplitKConfig(block_n=32, **EARLY), "apart"),
    Route("standard", StandardConfig(block_m=16, block_n=32), "standard"),
]
for length in (1, 100, 333):
    query = torch.randn(1, 8, 1, 128, device="cuda", dtype=torch.bfloat16)
    key, value = torch.randn(2, 1, 2, 333, 128, device="cuda", dtype=torch.bfloat16)
    filled = torch.tensor([length], device="cuda")
    for route in ROUTES:
        got = sdpa(query, key, value, kv_len=filled, route=route)
        torch.testing.assert_close(got, sdpa_reference(query, key, value, kv_len=filled), atol=2e-2, rtol=2e-2)
print("all results right")
