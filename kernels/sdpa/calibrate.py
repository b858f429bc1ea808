"""Measure which kernel is fastest on the GPU at hand, and keep the answer as a table of routes.

Decode is measured as a captured step runs it: CUDA-graph replay, cold L2, valid length on the device. A prefill call is
long enough for the same method to hold. `calibrate` is what `python -m runner calibrate` calls: under a minute.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from kernels.sdpa.api import run_route
from kernels.sdpa.checks import SPLITK_MAX_QUERIES
from kernels.sdpa.config import SplitKConfig, StandardConfig
from kernels.sdpa.route import TORCH_KERNELS, Route, can_run, default_config, normal
from kernels.sdpa.route import route as choose
from kernels.sdpa.shape import Shape
from kernels.sdpa.table import Row, Table, save, user_path, versions
from kernels.timing import graph_times, sets_for_cold_l2

# Query heads, key-value heads, head_dim: Gemma sliding and full layers, Qwen, and the common head_dim 128.
LAYERS = ((32, 16, 256), (16, 2, 256), (32, 16, 128), (32, 4, 512))
DECODE_LENGTHS = (64, 256, 1024, 4096, 16384, 65536)
PREFILL_LENGTHS = (512, 2401)
PREFILL_WINDOW = 1024
SLACK = 1.03  # configurations this near to the best count as equal


class Pool:
    """One buffer of random keys and values, out of which every shape takes its sets: no allocation between timings."""

    def __init__(self, device: torch.device, elements: int = 1 << 30) -> None:
        self.device = device
        self.memory = torch.randn(elements, dtype=torch.bfloat16, device=device)

    def sets(self, shape: Shape, most: int = 1024) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(key, value) pairs [B, K, L_kv, D] that together are too large for the L2; at least two."""
        each = shape.B * shape.K * shape.L_kv * shape.D
        wanted = sets_for_cold_l2(shape.kv_bytes, self.device, most=most)
        if 4 * each > self.memory.numel():
            raise ValueError(f"a pool of {self.memory.numel()} elements is too small for two sets of {shape}")
        fits = min(wanted, self.memory.numel() // (2 * each))
        parts = self.memory[: fits * 2 * each].view(fits, 2, shape.B, shape.K, shape.L_kv, shape.D)
        return [(parts[i, 0], parts[i, 1]) for i in range(fits)]


def calls_of(
    shape: Shape, chosen: Route, pool: Pool, *, most: int = 1024, query: torch.Tensor | None = None
) -> list[Callable[[], torch.Tensor]]:
    """One call of the chosen kernel for each set of the pool, on one query (default: fresh random numbers)."""
    if query is None:
        query = torch.randn(shape.B, shape.H, shape.L_q, shape.D, dtype=torch.bfloat16, device=pool.device)
    out = torch.empty_like(query)
    bounded = chosen.kernel in ("splitk", "standard") and shape.L_q <= SPLITK_MAX_QUERIES
    length = torch.tensor([shape.L_kv], dtype=torch.int32, device=pool.device) if bounded else None

    def call(key: torch.Tensor, value: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: run_route(
            chosen,
            query,
            key,
            value,
            None,
            is_causal=shape.causal,
            scale=None,
            kv_len=length,
            window=shape.window,
            kv_len_settled=True,
            out=None if chosen.kernel.startswith("torch_") else out,
        )

    return [call(key, value) for key, value in pool.sets(shape, most)]


@dataclass
class Measured:
    """Every configuration tried on one shape: Route -> median microseconds, and what failed with which error."""

    shape: Shape
    us: dict[Route, float] = field(default_factory=dict)
    errors: dict[Route, str] = field(default_factory=dict)

    def best(self, kernel: str) -> float:
        """The shortest time of one kernel's configurations."""
        return min(us for tried, us in self.us.items() if tried.kernel == kernel)

    def row(self, others: Sequence[Measured] = ()) -> Row:
        """The configuration to take of every kernel, and its time: the best, or one within SLACK of it.

        L_kv is the length of a buffer, of which often less is valid. So among configurations within SLACK the one is
        taken that loses least on the shorter buffers among `others`, at its worst.
        """
        length = self.shape.L_kv
        shorter = [o for o in others if o.shape.L_kv < length and replace(o.shape, L_kv=length) == self.shape]
        taken: dict[str, Route] = {}
        for name in sorted({tried.kernel for tried in self.us}):
            good = [t for t, us in self.us.items() if t.kernel == name and us <= SLACK * self.best(name)]
            loss = {t: max((o.us[t] / o.best(name) for o in shorter if t in o.us), default=1.0) for t in good}
            taken[name] = min(good, key=lambda t: (loss[t], self.us[t]))
        times = {name: round(self.us[tried], 2) for name, tried in taken.items()}
        configs = {name: tried.config for name, tried in taken.items() if tried.config is not None}
        return Row(self.shape, times, configs)


def measure(shape: Shape, routes: Iterable[Route], pool: Pool, *, runs: int = 5, twice: bool = False) -> Measured:
    """Time every route on this shape. A route that raises is kept by its error, not dropped.

    `twice`: what comes within a tenth of its kernel's best is timed again in another graph, and the slower of the two
    counts. Short kernels that overlap have faster and slower rhythms, and a lucky one should not choose.
    """
    result = Measured(shape)

    def time(tried: Route) -> None:
        try:
            times = graph_times(calls_of(shape, tried, pool), runs=runs, warm_ms=5.0)
        except (RuntimeError, ValueError) as error:
            result.errors[tried] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            result.us[tried] = max(result.us.get(tried, 0.0), statistics.median(times))

    for tried in routes:
        time(tried)
    if twice:
        for tried in [t for t, us in result.us.items() if t.config and us <= 1.1 * result.best(t.kernel)]:
            time(tried)
    return result


def splitk_candidates(shape: Shape) -> list[SplitKConfig]:
    """The default and its neighbours: other spreads, the other reduction and order of loads, no prefetch."""
    base = default_config("splitk", shape)
    assert isinstance(base, SplitKConfig)
    other = replace(base, reduce="apart" if base.reduce == "fused" else "fused")
    spread = [replace(base, programs_per_sm=n) for n in (1, 2, 4)]
    rows = replace(base, min_rows=64 if base.min_rows == 32 else 32)
    late = replace(base, late_query=not base.late_query)
    return [*spread, rows, replace(base, prefetch_rows=0), late, other]


def standard_candidates(shape: Shape) -> list[StandardConfig]:
    """The default and its neighbours in key rows and stages."""
    base = default_config("standard", shape)
    assert isinstance(base, StandardConfig)
    return [base, replace(base, block_n=max(16, base.block_n // 2), num_stages=3)]


def candidates(shape: Shape) -> list[Route]:
    """Every kernel that can run the shape, ours with a few configurations."""
    shape = normal(shape)
    routes = [Route("splitk", c, "") for c in splitk_candidates(shape) if can_run("splitk", shape)]
    routes += [Route("standard", c, "") for c in standard_candidates(shape) if can_run("standard", shape)]
    fast = TORCH_KERNELS if shape.D > 256 else ("torch_flash", "torch_cudnn", "torch_default")
    return [*routes, *(Route(name, None, "") for name in fast if can_run(name, replace(shape, bounded=False)))]


Work = Sequence[tuple[Shape, Sequence[Route]]]


class Compiler:
    """Processes that compile kernels into triton's cache on disk: one after the other would take most of the time."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = min(12, os.cpu_count() or 1) if workers is None else workers
        self.executor = ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"))

    def ahead(self, work: Work) -> None:
        """Compile what all these routes need. What fails to compile is left for the measurement to name."""
        wanted: dict[tuple[Any, ...], tuple[Shape, Route]] = {}
        for shape, routes in work:
            few = replace(shape, L_kv=max(shape.L_q, 64))
            for tried in routes:
                if tried.config is not None:
                    compiled = tried.config
                    if isinstance(compiled, SplitKConfig):  # no constant of the kernel
                        compiled = replace(compiled, min_rows=16)
                    wanted[(few.H, few.K, few.D, min(few.L_q, 16), few.window is None, compiled)] = few, tried
        items = list(wanted.values())
        for _ in self.executor.map(_compile, (items[i :: self.workers * 4] for i in range(self.workers * 4))):
            pass

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown()


def _compile(items: Sequence[tuple[Shape, Route]]) -> None:
    """In a worker: run every kernel once on a few rows."""
    for shape, tried in items:
        pool = Pool(torch.device("cuda"), 4 * shape.K * shape.L_kv * shape.D)
        with contextlib.suppress(RuntimeError, ValueError):
            calls_of(shape, tried, pool, most=2)[0]()
    torch.cuda.synchronize()


def calibration_shapes(gpu: str) -> list[Shape]:
    """The shapes of a user's table: decode over the lengths, and prefill plain and windowed."""
    shapes = []
    for H, K, D in LAYERS:
        base = Shape(B=1, H=H, K=K, L_q=1, L_kv=1, D=D, device=gpu)
        shapes += [replace(base, L_kv=L) for L in DECODE_LENGTHS]
        for L in PREFILL_LENGTHS:
            prompt = replace(base, L_q=L, L_kv=L, causal=True)
            shapes += [prompt, *([replace(prompt, window=PREFILL_WINDOW)] if PREFILL_WINDOW < L else [])]
    return shapes


def calibrate(path: Path | None = None, *, progress: Callable[[str], object] | None = None) -> Table:
    """Measure this GPU and store its table (default: in the user's cache). Returns it. RuntimeError without CUDA."""
    if not torch.cuda.is_available():
        raise RuntimeError("calibrate needs an NVIDIA GPU: torch.cuda.is_available() is False")
    say = progress or (lambda text: None)
    device = torch.device("cuda", torch.cuda.current_device())
    gpu = torch.cuda.get_device_name(device)
    pool = Pool(device)
    work = [(shape, candidates(shape)) for shape in calibration_shapes(gpu)]
    say(f"compiling for {gpu}")
    with Compiler() as compiler:
        compiler.ahead(work)
    found: list[Measured] = []
    for done, (shape, routes) in enumerate(work, 1):
        measured = measure(shape, routes, pool)
        found.append(measured)
        for tried, error in measured.errors.items():
            say(f"{done}/{len(work)} {tried.kernel} {tried.config} failed: {error}")
        row = measured.row()
        best = min(row.us, key=lambda name: row.us[name])
        say(f"{done}/{len(work)} {row.label()}: {best} {row.us[best]:.1f} us")
    table = Table(gpu, tuple(one.row(found) for one in found), {**versions(), **origin("python -m runner calibrate")})
    path = user_path(gpu) if path is None else path
    save(table, path)
    choose.cache_clear()
    say(f"wrote {path}")
    return table


def origin(command: str | None = None, commit: str = "") -> dict[str, str]:
    """Date and command of a measurement, as tables and results record them."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"date": now, "command": command or " ".join(sys.argv), "commit": commit}
