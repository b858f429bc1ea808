"""Find the configurations behind kernels/sdpa/routes/<gpu>.json: every tile, spread and reduction on every shape.

    python3 scripts/tune_sdpa.py --output h100.json [--samples samples.json] [--commit HASH] [--also NAME ...]

Timing as in kernels/sdpa/calibrate.py. Three minutes of one GPU; users calibrate instead, with fewer configurations.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kernels.ceilings import read_bandwidth
from kernels.sdpa import calibrate as cal
from kernels.sdpa.config import SplitKConfig, StandardConfig
from kernels.sdpa.route import ONE_LAUNCH_UP_TO, Route, can_run, normal
from kernels.sdpa.shape import Shape
from kernels.sdpa.table import Row, Table, versions

TILES = {  # head_dim -> (block_n, num_warps, num_stages)
    128: [(32, 4, 4), (64, 4, 3), (64, 8, 3)],
    256: [(32, 4, 3), (32, 4, 4), (64, 8, 3)],
    512: [(16, 4, 2), (16, 4, 3), (16, 4, 4)],
}
ALONE = [
    {"reduce": "fused", "dependent": True, "prefetch_rows": 64},
    {"reduce": "fused", "dependent": True},
]
EARLY = {"reduce": "apart", "overlap": True, "dependent": True}
APART = [EARLY, {**EARLY, "prefetch_rows": 32}, {**EARLY, "prefetch_rows": 32, "late_query": True}]
PREFILL_TILES = {  # head_dim -> (block_m, block_n, num_warps, num_stages, tma)
    128: [(128, 64, 8, 3, False), (128, 64, 8, 3, True), (128, 128, 8, 2, True), (64, 64, 4, 3, True)],
    256: [
        (128, 64, 8, 2, False),
        (128, 64, 8, 2, True),
        (128, 32, 8, 3, True),
        (64, 64, 4, 2, True),
        (64, 32, 4, 3, True),
    ],
    512: [
        (64, 32, 8, 2, False),
        (64, 32, 8, 2, True),
        (64, 16, 8, 3, True),
        (64, 32, 4, 2, True),
        (64, 64, 8, 1, True),
    ],
}
FEW_QUERY_TILES = [(16, 32, 4, 3), (16, 64, 4, 2), (16, 16, 4, 4), (16, 32, 4, 2)]
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)
VERIFY_LENGTHS = (1024, 16384)


def torch_routes(shape: Shape) -> list[Route]:
    """torch's backends worth timing on this shape."""
    names = ("torch_flash", "torch_cudnn", "torch_default")
    return [Route(name, None, "") for name in names if can_run(name, normal(replace(shape, bounded=False)))]


def standard_routes(shape: Shape) -> list[Route]:
    """The standard kernel with every tile for this many queries."""
    tiles = FEW_QUERY_TILES if shape.L_q * shape.group <= 16 else PREFILL_TILES[shape.D]
    return [Route("standard", StandardConfig(*tile), "") for tile in tiles]


def splitk_routes(shape: Shape) -> list[Route]:
    """Split-K on every tile, spread over one or two programs a multiprocessor; for few keys in one launch, too."""
    reductions = [*APART, *ALONE] if shape.L_kv <= ONE_LAUNCH_UP_TO else APART
    return [
        Route("splitk", SplitKConfig(n, w, s, programs_per_sm=spread, min_rows=rows, **reduction), "")
        for n, w, s in TILES[shape.D]
        for spread in (1, 2)
        for rows in (16, 32, 64)
        for reduction in reductions
    ]


def decode(shapes: list[Shape], pool: cal.Pool, compiler: cal.Compiler) -> list[cal.Measured]:
    """Few queries over many keys, with a valid length on the device."""
    work = []
    for shape in shapes:
        slow = standard_routes(shape)
        slow = slow if shape.L_kv <= 1024 else slow[:1]
        work.append((shape, [*splitk_routes(shape), *slow, *torch_routes(shape)]))
    compiler.ahead(work)
    return measured(work, pool, twice=True)


def measured(work: list[tuple[Shape, list[Route]]], pool: cal.Pool, *, twice: bool) -> list[cal.Measured]:
    """Time it all; what fails is named, once a route, so that no gap in the table goes unexplained."""
    results = [cal.measure(shape, routes, pool, runs=4, twice=twice) for shape, routes in work]
    for found in results:
        for tried, error in found.errors.items():
            print(f"FAILED {found.shape} {tried.kernel} {tried.config}: {error[:200]}", flush=True)
    return results


def prefill(base: Shape, pool: cal.Pool, compiler: cal.Compiler) -> list[cal.Measured]:
    """Causal prompts, plain and windowed, on every tile and every torch backend."""
    plain = [replace(base, L_q=L, L_kv=L, causal=True) for L in cal.PREFILL_LENGTHS]
    shapes = [*plain, *(replace(s, window=cal.PREFILL_WINDOW) for s in plain if s.L_q > cal.PREFILL_WINDOW)]
    work = [(shape, [*standard_routes(shape), *torch_routes(shape)]) for shape in shapes]
    compiler.ahead(work)
    return measured(work, pool, twice=False)


def show(row: Row) -> None:
    """One line a shape: best time of each kernel and our configurations."""
    times = " ".join(f"{name} {us:.1f}" for name, us in sorted(row.us.items(), key=lambda item: item[1]))
    told = []
    for name, config in row.configs.items():
        values = asdict(config)
        told.append(f"{name}({', '.join(str(value) for value in values.values())})")
    print(f"{row.label()} | {times} | {' '.join(told)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--samples", type=Path)
    parser.add_argument("--commit", default="")
    parser.add_argument("--also", nargs="*", default=[], help="names of GPUs with the same chip")
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS))
    options = parser.parse_args()
    device = torch.device("cuda")
    gpu = torch.cuda.get_device_name()
    pool = cal.Pool(device)
    results: list[cal.Measured] = []
    began = time.time()
    with cal.Compiler() as compiler:
        for H, K, D in cal.LAYERS:
            base = Shape(B=1, H=H, K=K, L_q=1, L_kv=1, D=D, device=gpu)
            drafts = replace(base, L_q=4, causal=True)
            shapes = [replace(base, L_kv=L) for L in options.lengths]
            shapes += [replace(drafts, L_kv=L) for L in VERIFY_LENGTHS]
            found = [*decode(shapes, pool, compiler), *prefill(base, pool, compiler)]
            for one in found:
                show(one.row(found))
            results += found
            print(f"# {time.time() - began:.0f} s", flush=True)
    bandwidth = read_bandwidth(device)
    print(f"read bandwidth {bandwidth / 1e9:.0f} GB/s")
    source = {
        "read_gbps": round(bandwidth / 1e9),
        **versions(),
        **cal.origin(commit=options.commit),
        "also": options.also,
    }
    options.output.write_text(Table(gpu, tuple(one.row(results) for one in results), source).as_json())
    if options.samples:
        samples = [
            {
                "shape": asdict(one.shape),
                "kernel": tried.kernel,
                "config": tried.config and asdict(tried.config),
                "us": us,
            }
            for one in results
            for tried, us in one.us.items()
        ]
        options.samples.write_text(json.dumps(samples))


if __name__ == "__main__":
    main()
