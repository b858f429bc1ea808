"""Find the configurations behind kernels/sdpa/routes/<gpu>.json: a two-stage search over every shape of the table.

    python3 scripts/tune_sdpa.py --output h200.json [--samples samples.json] [--commit HASH]

First every tile at two lengths, then the best few of them with every reduction at all lengths. Timing as in
kernels/sdpa/calibrate.py. Several minutes of one GPU; users calibrate instead.
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
from kernels.sdpa.route import Route, can_run, normal
from kernels.sdpa.shape import Shape
from kernels.sdpa.table import Table, versions

TILES = {  # head_dim -> (block_n, num_warps, num_stages)
    128: [(32, 4, 4), (64, 4, 2), (64, 4, 3), (64, 8, 3)],
    256: [(16, 4, 3), (32, 4, 2), (32, 4, 3), (64, 8, 2), (64, 8, 3)],
    512: [(16, 4, 3), (16, 4, 4), (16, 8, 3), (32, 8, 2), (32, 8, 3)],
}
EARLY = {"reduce": "apart", "overlap": True, "dependent": True}
REDUCTIONS = [
    {"reduce": "fused", "dependent": True},
    {"reduce": "fused", "reducers": 16, "dependent": True},
    {"reduce": "apart", "overlap": True},
    EARLY,
    {**EARLY, "narrow": True},
    {**EARLY, "merge_columns": 32},
    {**EARLY, "narrow": True, "merge_columns": 128},
]
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
LENGTHS = (64, 256, 1024, 2048, 4096, 16384, 65536)
VERIFY_LENGTHS = (1024, 16384)
KEEP = 2


def torch_routes(shape: Shape) -> list[Route]:
    """torch's backends worth timing on this shape."""
    names = ("torch_flash", "torch_cudnn", "torch_default")
    return [Route(name, None, "") for name in names if can_run(name, normal(replace(shape, bounded=False)))]


def standard_routes(shape: Shape) -> list[Route]:
    """The standard kernel with every tile for this many queries."""
    tiles = FEW_QUERY_TILES if shape.L_q * shape.group <= 16 else PREFILL_TILES[shape.D]
    return [Route("standard", StandardConfig(*tile), "") for tile in tiles]


def best(found: cal.Measured, kernel: str, keep: int) -> list[Route]:
    """The fastest `keep` routes of one kernel."""
    ours = [tried for tried in found.us if tried.kernel == kernel]
    return sorted(ours, key=lambda tried: found.us[tried])[:keep]


def search(shapes: list[Shape], probes: list[Shape], pool: cal.Pool, compiler: cal.Compiler) -> list[cal.Measured]:
    """Both stages for shapes that differ in L_kv alone; `probes` are those of the first stage."""
    first = [
        Route("splitk", SplitKConfig(n, w, s, programs_per_sm=per, min_rows=min(n, 32), **EARLY), "")
        for n, w, s in TILES[shapes[0].D]
        for per in (1, 2, 3, 4)
    ]
    compiler.ahead([(probes[0], first)])
    tiles: list[SplitKConfig] = []
    for probe in probes:
        found = cal.measure(probe, first, pool, replays=3)
        report_errors(found)
        for tried in best(found, "splitk", KEEP):
            config = replace(tried.config, reduce="fused", overlap=False, dependent=False)
            if config not in tiles:
                tiles.append(config)
    second = [
        Route("splitk", replace(tile, min_rows=rows, **reduction), "")
        for tile in tiles
        for rows in (32, 64)
        for reduction in REDUCTIONS
    ]
    standard = standard_routes(shapes[0])
    compiler.ahead([(shapes[0], second), (shapes[0], standard)])
    results = []
    for shape in shapes:
        slow = standard if shape.L_kv <= 16384 else standard[:1]
        found = cal.measure(shape, [*second, *slow, *torch_routes(shape)], pool, replays=3)
        report_errors(found)
        results.append(found)
    return results


def prefill(base: Shape, pool: cal.Pool, compiler: cal.Compiler) -> list[cal.Measured]:
    """Causal prompts, plain and windowed, on every tile and every torch backend."""
    plain = [replace(base, L_q=L, L_kv=L, causal=True) for L in cal.PREFILL_LENGTHS]
    shapes = [*plain, *(replace(s, window=cal.PREFILL_WINDOW) for s in plain if s.L_q > cal.PREFILL_WINDOW)]
    work = [(shape, [*standard_routes(shape), *torch_routes(shape)]) for shape in shapes]
    compiler.ahead(work)
    results = [cal.measure(shape, routes, pool) for shape, routes in work]
    for found in results:
        report_errors(found)
    return results


def report_errors(found: cal.Measured) -> None:
    """Name what failed, once a route, so that no gap in the table goes unexplained."""
    for tried, error in found.errors.items():
        print(f"FAILED {found.shape} {tried.kernel} {tried.config}: {error[:200]}", flush=True)


def show(found: cal.Measured) -> None:
    """One line a shape: best time of each kernel and our configurations."""
    row = found.row()
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
            verify = replace(base, L_q=4, causal=True)
            decode = [replace(base, L_kv=L) for L in options.lengths]
            found = search(decode, [replace(base, L_kv=L) for L in (1024, 16384)], pool, compiler)
            found += search(
                [replace(verify, L_kv=L) for L in VERIFY_LENGTHS], [replace(verify, L_kv=4096)], pool, compiler
            )
            found += prefill(base, pool, compiler)
            for one in found:
                show(one)
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
    options.output.write_text(Table(gpu, tuple(one.row() for one in results), source).as_json())
    if options.samples:
        samples = [
            {
                "shape": asdict(one.shape),
                "us": [[t.kernel, t.config and asdict(t.config), us] for t, us in one.us.items()],
            }
            for one in results
        ]
        options.samples.write_text(json.dumps(samples))


if __name__ == "__main__":
    main()
