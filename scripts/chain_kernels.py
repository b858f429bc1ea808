"""GPU checks and per-shape timings of the decode-layer kernels: what scripts/chain.py runs before it times a chain."""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

import torch

from kernels.matvec import DenseWeight, MatvecConfig, config_for, matvec, matvec_gated
from kernels.matvec import reference as matvec_reference
from kernels.norm import Norm, sandwich
from kernels.norm import reference as norm_reference
from kernels.rope import qk_norm_rope_cache_write
from kernels.rope import reference as rope_reference
from kernels.timing import graph_times

CANDIDATES = (
    MatvecConfig(1, 2048, 4, 4, 1),
    MatvecConfig(1, 2048, 4, 3, 2),
    MatvecConfig(1, 2048, 4, 3, 4),
    MatvecConfig(2, 1024, 4, 6, 1),
    MatvecConfig(1, 1024, 2, 6, 1),
    MatvecConfig(1, 4096, 8, 3, 1),
)
CHECK_SHAPES = ((5376, 8192), (5376, 21504), (16384, 5376), (1002, 1000), (130, 63))
MODES: tuple[tuple[bool, Literal["early", "late"]], ...] = ((False, "late"), (True, "late"), (True, "early"))


# rows, cols, gated, launch, pdl and the options "norm", "residual", "activation"
CompileJob = tuple[int, int, bool, MatvecConfig, bool, dict[str, Any]]


def replay_ms(work: Callable[[], object], runs: int = 15) -> float:
    """Median milliseconds of one replay."""
    return statistics.median(graph_times([work], runs=runs)) / 1e3


def _compile(job: CompileJob) -> None:
    rows, cols, gated, launch, pdl, options = job
    device = torch.device("cuda")
    # Only divisibility of the row count reaches the compiled kernel, so a few rows stand for the matrix.
    weight = DenseWeight(torch.zeros(64 if rows % 32 == 0 else rows, cols, device=device, dtype=torch.bfloat16))
    x = torch.zeros(cols, device=device, dtype=torch.bfloat16)
    norm = Norm(x, 1e-6) if options.get("norm") else None
    if gated:
        matvec_gated(weight, x, activation=options["activation"], norm=norm, launch=launch, pdl=pdl)
    else:
        residual = torch.zeros(weight.rows, device=device, dtype=torch.bfloat16) if options.get("residual") else None
        matvec(weight, x, launch=launch, pdl=pdl, norm=norm, residual=residual, softcap=options.get("softcap"))


def precompile(jobs: Iterable[CompileJob], workers: int) -> None:
    """Fill Triton's disk cache in parallel processes: compiling one after the other would cost minutes."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(_compile, list(jobs), chunksize=4)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected|| in fp64; NaN when any value is unwritten."""
    difference = (found.double() - expected.double()).norm()
    return float(difference / expected.double().norm())


def _check_cases() -> Iterable[tuple[int, int, MatvecConfig, bool]]:
    for (rows, cols), (pdl, trigger) in itertools.product(CHECK_SHAPES, (MODES[0], MODES[2])):
        yield rows, cols, replace(config_for(rows, cols), trigger=trigger), pdl


def check_jobs() -> list[CompileJob]:
    """What check_matvec will run, for precompile."""
    jobs: list[CompileJob] = []
    for rows, cols, launch, pdl in _check_cases():
        for flag in ({}, {"norm": True, "residual": True}, {"softcap": 2.0}):
            jobs.append((rows, cols, False, launch, pdl, flag))
        jobs += [(rows, cols, True, launch, pdl, {"norm": True, "activation": name}) for name in ("gelu_tanh", "silu")]
    return jobs


def check_matvec(device: torch.device) -> dict[str, float]:
    """Largest relative error by kernel over real and odd sizes, dependent launch off and on; outputs poisoned."""
    worst: dict[str, float] = {}
    torch.manual_seed(0)
    for rows, cols, launch, pdl in _check_cases():
        weight = DenseWeight((torch.randn(rows, cols, device=device) / cols**0.5).bfloat16())
        x, residual = torch.randn(cols, device=device).bfloat16(), torch.randn(rows, device=device).bfloat16()
        norm = Norm(torch.randn(cols, device=device).bfloat16(), 1e-6, 1.0)
        cases: tuple[tuple[str, dict[str, Any]], ...] = (
            ("matvec", {}),
            ("matvec norm residual", {"norm": norm, "residual": residual}),
            ("matvec softcap", {"softcap": 2.0}),
        )
        for name, options in cases:
            out = torch.full((rows,), float("nan"), device=device, dtype=torch.bfloat16)
            matvec(weight, x, out=out, launch=launch, pdl=pdl, **options)
            expected = matvec_reference.matvec(weight, x, out_dtype=torch.float32, **options)
            worst[name] = max(worst.get(name, 0.0), error(out, expected))
        for activation in ("gelu_tanh", "silu"):
            out = torch.full((rows // 2,), float("nan"), device=device, dtype=torch.bfloat16)
            matvec_gated(weight, x, activation=activation, norm=norm, out=out, launch=launch, pdl=pdl)
            wide = torch.empty(rows // 2, device=device)
            matvec_reference.matvec_gated(weight, x, activation=activation, norm=norm, out=wide)
            worst[activation] = max(worst.get(activation, 0.0), error(out, wide))
    return worst


def check_small(device: torch.device) -> dict[str, float]:
    """The same for the seam and for qk-norm + RoPE + cache write."""
    worst: dict[str, float] = {}
    torch.manual_seed(1)
    for K, rows, pdl in itertools.product((63, 1000, 4096, 5376), (1, 3), (False, True)):
        h, y, w = (torch.randn(rows, K, device=device).bfloat16() for _ in range(3))
        norm = Norm(w[0].contiguous(), 1e-6, 1.0)
        scalar = torch.tensor([0.7], device=device).bfloat16()
        expected = norm_reference.sandwich(h, y, post=norm, scalar=scalar, pre=norm)
        found = sandwich(
            h, y, post=norm, scalar=scalar, pre=norm, h_out=torch.full_like(h, float("nan")),
            x_out=torch.full_like(h, float("nan")), pdl=pdl,
        )  # fmt: skip
        worst["seam"] = max(worst.get("seam", 0.0), *(error(a, b) for a, b in zip(found, expected, strict=True)))
    for H, KV, D, value_is_key, pdl in itertools.product((32,), (4, 16), (128, 256, 512), (False, True), (False, True)):
        qkv = torch.randn(1, (H + KV * (1 if value_is_key else 2)) * D, device=device).bfloat16()
        caches = torch.full((4, 1, KV, 64, D), 3.0, device=device, dtype=torch.bfloat16)
        norm = Norm(torch.randn(D, device=device).bfloat16(), 1e-6, 1.0)
        options = dict(
            position=torch.tensor([100_001], device=device), num_heads=H, ring=True, q_norm=norm, k_norm=norm,
            v_norm=Norm(None, 1e-6), value_is_key=value_is_key,
            inv_freq=1e-4 ** (torch.arange(0, D, 2, device=device) / D),
        )  # fmt: skip
        expected_q = rope_reference.qk_norm_rope_cache_write(qkv, caches[0], caches[1], **options)
        q = qk_norm_rope_cache_write(
            qkv, caches[2], caches[3], **options, q_out=torch.full_like(expected_q, float("nan")), pdl=pdl
        )
        for a, b in ((q, expected_q), (caches[2], caches[0]), (caches[3], caches[1])):
            worst["rope"] = max(worst.get("rope", 0.0), error(a, b))
    return worst


def sweep(
    shapes: Iterable[tuple[int, int, bool]], memory: torch.Tensor, bandwidth: float
) -> dict[str, list[dict[str, Any]]]:
    """Share of read bandwidth of every candidate and mode, best first; weights are disjoint slices of bf16 `memory`."""
    table: dict[str, list[dict[str, Any]]] = {}
    for rows, cols, gated in shapes:
        copies = max(2, min(12, memory.numel() // (rows * cols)))
        weights = [DenseWeight(memory[i * rows * cols : (i + 1) * rows * cols].view(rows, cols)) for i in range(copies)]
        x = torch.randn(cols, device=memory.device).bfloat16()
        found = []
        for launch, (pdl, trigger) in itertools.product(CANDIDATES, MODES):
            launch = replace(launch, trigger=trigger)

            def work(launch=launch, pdl=pdl, weights=weights, x=x, gated=gated) -> None:
                for weight in weights:
                    if gated:
                        matvec_gated(weight, x, activation="gelu_tanh", launch=launch, pdl=pdl)
                    else:
                        matvec(weight, x, launch=launch, pdl=pdl)

            ms = replay_ms(work, 7) / copies
            mode = trigger if pdl else "off"
            shape = (launch.rows, launch.block, launch.warps, launch.preload, launch.series)
            share = weights[0].nbytes / ms * 1e3 / bandwidth
            found.append({"config": shape, "pdl": mode, "us": round(ms * 1e3, 2), "share": round(share, 4)})
        found.sort(key=lambda entry: entry["us"])
        table[f"{rows}x{cols}{' gated' if gated else ''}"] = found
    return table
