"""Time decode attention, and prefill, on every backend there is; say how close each comes to the memory roof.

    python3 scripts/benchmark_sdpa.py --mode both --prefill --output results/sdpa

Every backend is checked against fp32 before it is timed; one that is wrong or fails is named with its error. Times are
mean and standard deviation over the last 6 of 10 runs. "cudagraph" replays a graph of calls that rotate through more
keys and values than the L2 holds (cold) or repeat one set (warm); "plain" launches the same calls from Python, which
measures the host: the origin of this project first put its threshold at 2048 keys for that reason. Writes
OUTPUT.json, OUTPUT.md and, with matplotlib, OUTPUT.png.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kernels.ceilings import read_bandwidth
from kernels.sdpa import route as choose
from kernels.sdpa import sdpa_reference
from kernels.sdpa.calibrate import LAYERS, Pool, calls_of
from kernels.sdpa.route import Route, named_route
from kernels.sdpa.shape import Shape
from kernels.sdpa.table import kernels_hash
from kernels.timing import graph_times, plain_times
from scripts.origin import ORIGIN_A100
from scripts.provenance import write_result

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
BACKENDS = (
    "routed",
    "splitk",
    "standard",
    "torch_default",
    "torch_flash",
    "torch_cudnn",
    "torch_efficient",
    "torch_math",
)
TORCH = BACKENDS[3:]
RUNS, KEPT = 10, 6
PREFILL = (2401,)
WINDOW = 1024


@dataclass(frozen=True)
class Cell:
    """One backend on one shape, timed one way; `error` instead of times when it is wrong or fails."""

    shape: Shape
    backend: str
    timing: str
    why: str
    mean_us: float | None = None
    std_us: float | None = None
    runs_us: tuple[float, ...] = ()
    error: str | None = None


def route_of(backend: str, shape: Shape) -> Route:
    """The route behind a column: the router's own choice, one of our kernels by name, or a torch backend as it is."""
    if backend == "routed":
        return choose(shape)
    return Route(backend, None, "as asked") if backend in TORCH else named_route(backend, shape)


def check(shape: Shape, chosen: Route, pool: Pool) -> None:
    """Raise unless the result is as near to fp32 as bf16 allows: within four roundings of the exact result to bf16."""
    query = torch.randn(shape.B, shape.H, shape.L_q, shape.D, dtype=torch.bfloat16, device=pool.device)
    got = calls_of(shape, chosen, pool, most=2, query=query)[0]()
    key, value = pool.sets(shape, 2)[0]
    truth = sdpa_reference(query.float(), key.float(), value.float(), is_causal=shape.causal, window=shape.window)
    rounded = sdpa_reference(query, key, value, is_causal=shape.causal, window=shape.window)
    distance = (got.float() - truth).norm() / truth.norm()
    allowed = 4 * (rounded.float() - truth).norm() / truth.norm()
    if not distance <= allowed:
        raise ArithmeticError(f"relative distance {distance:.2e} from fp32, allowed {allowed:.2e}")


def time_cell(shape: Shape, backend: str, timing: str, pool: Pool) -> Cell:
    """Check, then time. `timing`: "cold" and "warm" under graph replay, "plain" launched by the host."""
    try:
        chosen = route_of(backend, shape)
        check(shape, chosen, pool)
        calls = calls_of(shape, chosen, pool)
        if timing == "warm":
            calls = calls[:1] * min(len(calls), 32)
        measure = plain_times if timing == "plain" else graph_times
        runs = measure(calls[:64] if timing == "plain" else calls, runs=RUNS, warm_ms=50.0)
    except (RuntimeError, ValueError, ArithmeticError) as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        return Cell(shape, backend, timing, "", error=text)
    kept = runs[-KEPT:]
    why = chosen.why if backend == "routed" else chosen.kernel
    return Cell(shape, backend, timing, why, statistics.mean(kept), statistics.stdev(kept), tuple(runs))


def label(shape: Shape) -> str:
    """Heads and head_dim of a shape, as table headings name them."""
    return f"B{shape.B} Hq{shape.H} Hkv{shape.K} D{shape.D}"


def tables(cells: list[Cell], bandwidth: float) -> str:
    """Markdown: decode by layer and timing with the share of the read bandwidth, prefill, the origin's figures."""
    found = {(cell.shape, cell.backend, cell.timing): cell for cell in cells}
    lines = []
    for timing in dict.fromkeys(cell.timing for cell in cells):
        for name in dict.fromkeys(label(cell.shape) for cell in cells if cell.shape.L_q == 1):
            lines += [
                "",
                f"### {name}, decode, {timing}, us (mean ± sd of the last {KEPT} of {RUNS} runs)",
                "",
                "| L_kv | floor | 1.15 (floor + 4) | " + " | ".join(BACKENDS) + " | routed: share of read bandwidth |",
                "|" + "---|" * (len(BACKENDS) + 4),
            ]
            shapes = dict.fromkeys(cell.shape for cell in cells if cell.shape.L_q == 1 and label(cell.shape) == name)
            for shape in shapes:
                row = [found.get((shape, backend, timing)) for backend in BACKENDS]
                floor = shape.kv_bytes / bandwidth * 1e6
                share = f"{floor / row[0].mean_us:.0%}" if row[0] and row[0].mean_us else ""
                texts = [_text(cell) for cell in row]
                lines.append(
                    f"| {shape.L_kv} | {floor:.1f} | {1.15 * (floor + 4):.1f} | " + " | ".join(texts) + f" | {share} |"
                )
    prompts = [cell for cell in cells if cell.shape.L_q > 1]
    if prompts:
        lines += ["", "### Causal prefill, us", "", "| shape | " + " | ".join(BACKENDS) + " |"]
        lines.append("|" + "---|" * (len(BACKENDS) + 1))
        for shape in dict.fromkeys(cell.shape for cell in prompts):
            window = "" if shape.window is None else f", window {shape.window}"
            texts = [_text(found.get((shape, backend, "cold"))) for backend in BACKENDS]
            lines.append(f"| {label(shape)}, {shape.L_q} tokens{window} | " + " | ".join(texts) + " |")
    lines += _against_origin(found)
    errors = {f"- {cell.backend} on {label(cell.shape)}: {cell.error}" for cell in cells if cell.error}
    return "\n".join([*lines, "", "Backends that failed or were wrong:", "", *(sorted(errors) or ["- none"])]) + "\n"


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return "failed" if cell.mean_us is None else f"{cell.mean_us:.1f} ± {cell.std_us:.1f}"


def _against_origin(found: dict[tuple[Shape, str, str], Cell]) -> list[str]:
    """How much split-K gains over the standard kernel, here and at the origin of this project."""
    lines = ["", "### Standard over split-K, graph timing: ours (cold L2), and the origin's on an A100", ""]
    lines += ["| layer | L_kv | standard | split-K | ratio | origin's standard | split-K | ratio |", "|" + "---|" * 8]
    for shape in dict.fromkeys(shape for shape, _, timing in found if timing == "cold" and shape.L_q == 1):
        theirs = ORIGIN_A100.get((shape.H, shape.K, shape.D), {}).get(shape.L_kv)
        ours = [found.get((shape, name, "cold")) for name in ("standard", "splitk")]
        if theirs and all(cell and cell.mean_us for cell in ours):
            a, b = (cell.mean_us for cell in ours if cell and cell.mean_us)
            lines.append(
                f"| {label(shape)} | {shape.L_kv} | {a:.1f} | {b:.1f} | {a / b:.1f} | {theirs[0]} | {theirs[1]} "
                f"| {theirs[0] / theirs[1]:.1f} |"
            )
    return lines


def plot(cells: list[Cell], bandwidth: float, gpu: str, path: Path) -> None:
    """Log-log lines of decode time against length, one panel a layer, with the memory roof under them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    timing = "cold" if any(cell.timing == "cold" for cell in cells) else "plain"
    cells = [cell for cell in cells if cell.shape.L_q == 1 and cell.timing == timing and cell.mean_us]
    names = list(dict.fromkeys(label(cell.shape) for cell in cells))
    figure, axes = plt.subplots(1, len(names), figsize=(5.2 * len(names), 4.6), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        for backend in BACKENDS:
            points = [(c.shape.L_kv, c.mean_us) for c in cells if label(c.shape) == name and c.backend == backend]
            if points:
                style = {"linewidth": 3, "color": "black", "alpha": 0.35} if backend == "routed" else {"marker": "."}
                axis.loglog(*zip(*points, strict=True), label=backend, **style)
        shapes = {cell.shape.L_kv: cell.shape for cell in cells if label(cell.shape) == name}
        roof = [(L, shape.kv_bytes / bandwidth * 1e6) for L, shape in sorted(shapes.items())]
        axis.loglog(*zip(*roof, strict=True), "k:", label=f"read at {bandwidth / 1e9:.0f} GB/s")
        axis.set(title=name, xlabel="keys", ylim=(1, None))
        axis.grid(True, which="major", alpha=0.3)
    axes[0][0].set_ylabel("us a call")
    axes[0][-1].legend(fontsize=8)
    how = "CUDA-graph replay, cold L2" if timing == "cold" else "launched from Python"
    figure.suptitle(f"Decode attention, bf16, {gpu}, {how}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("cudagraph", "plain", "both"), default="cudagraph")
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS))
    parser.add_argument("--warm", action="store_true", help="also time with one set of keys and values: a warm L2")
    parser.add_argument("--prefill", action="store_true", help="also time causal prompts, plain and windowed")
    parser.add_argument("--output", type=Path, required=True, help="path without suffix for .json, .md and .png")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs an NVIDIA GPU: torch.cuda.is_available() is False")
    device, gpu = torch.device("cuda"), torch.cuda.get_device_name()
    bandwidth = read_bandwidth(device)
    pool = Pool(device)
    timings = {"cudagraph": ["cold"], "plain": ["plain"], "both": ["cold", "plain"]}[options.mode]
    timings += ["warm"] if options.warm else []
    shapes = [Shape(B=1, H=H, K=K, L_q=1, L_kv=L, D=D, device=gpu) for H, K, D in LAYERS for L in options.lengths]
    work = [(shape, backend, timing) for shape in shapes for timing in timings for backend in BACKENDS]
    if options.prefill:
        for H, K, D in LAYERS:
            for L in PREFILL:
                prompt = Shape(B=1, H=H, K=K, L_q=L, L_kv=L, D=D, causal=True, device=gpu)
                work += [(prompt, name, "cold") for name in BACKENDS if name != "splitk"]
                work += [(replace(prompt, window=WINDOW), name, "cold") for name in ("routed", "standard")]
    cells = []
    for shape, backend, timing in work:
        cells.append(time_cell(shape, backend, timing, pool))
    text = f"# SDPA on {gpu}: torch {torch.__version__}, read bandwidth {bandwidth / 1e9:.0f} GB/s\n"
    text += tables(cells, bandwidth)
    print(text)
    body = {"read_bytes_per_s": bandwidth, "kernels": kernels_hash(), "cells": [asdict(cell) for cell in cells]}
    write_result(options.output.parent, options.output.name, body)
    options.output.with_suffix(".md").write_text(text)
    try:
        plot(cells, bandwidth, gpu, options.output.with_suffix(".png"))
    except ImportError as error:
        print(f"no plot: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
