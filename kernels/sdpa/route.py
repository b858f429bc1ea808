"""The only place that decides which kernel runs an attention call. Pure and on the host: a Shape in, a Route out.

Measured tables (table.py) say how long every kernel took for a grid of shapes; the fastest kernel that can run the
call wins. Where nothing was measured the built-in rule holds: split-K iff L_q == 1, L_kv >= 256 and head_dim a power of
two. Every number that a choice depends on is in this file or in a table.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

from kernels.sdpa.checks import SPLITK_MAX_HEAD_DIM, SPLITK_MAX_QUERIES, SPLITK_MAX_ROWS, STANDARD_MAX_HEAD_DIM
from kernels.sdpa.config import SplitKConfig, StandardConfig
from kernels.sdpa.shape import Shape, dtype_bytes
from kernels.sdpa.table import Row, Table, table_for

__all__ = ["Route", "Shape", "can_run", "default_config", "named_route", "route"]

SPLITK_FROM = 256  # keys from which the built-in rule takes split-K
ONE_LAUNCH_UP_TO = 128  # keys up to which by default the last block merges the splits, beyond it a second kernel
TORCH_KERNELS = ("torch_flash", "torch_cudnn", "torch_efficient", "torch_math", "torch_default")
KERNELS = ("splitk", "standard", *TORCH_KERNELS, "reference")

Config = SplitKConfig | StandardConfig | None


@dataclass(frozen=True)
class Route:
    """The choice for one Shape: a name out of KERNELS, its configuration (None for torch's kernels), and why."""

    kernel: str
    config: Config
    why: str


@functools.lru_cache(maxsize=4096)
def route(shape: Shape) -> Route:
    """The kernel for this call. Without a measurement the rule above, and `why` says which of the two it was."""
    if shape.device == "cpu":
        return Route("reference", None, "CPU tensors take the plain-torch twin")
    shape = normal(shape)
    table, notes = table_for(shape.device)
    found = _nearest(table, shape) if table else None
    if table and found:
        row, distance = found
        times = {name: us for name, us in row.us.items() if can_run(name, shape)}
        if times:
            ranking = sorted(times, key=lambda name: times[name])
            config = row.configs.get(ranking[0], default_config(ranking[0], shape))
            told = ", ".join(f"{name} {times[name]:.1f} us" for name in ranking[:2])
            place = "at this shape" if distance == 0 else f"at the nearest shape {row.label()}"
            return Route(ranking[0], config, "; ".join([f"measured on {table.gpu} {place}: {told}", *notes]))
    kernel, rule = _rule(shape)
    missing = "no measured shape like this" if table else f"no measured table for {shape.device}"
    return Route(kernel, default_config(kernel, shape), "; ".join([f"built-in rule: {rule}", missing, *notes]))


def named_route(name: str, shape: Shape) -> Route:
    """The route of a caller who insists on kernel `name`: the measured configuration if there is one.

    Raises ValueError for an unknown name or one that cannot run this shape.
    """
    if name not in KERNELS:
        raise ValueError(f"sdpa knows the kernels {', '.join(KERNELS)}; found route {name!r}")
    if shape.device == "cpu":
        return Route("reference", None, "CPU tensors take the plain-torch twin")
    shape = normal(shape)
    if not can_run(name, shape):
        raise ValueError(f"kernel {name} cannot run {shape}")
    table, _ = table_for(shape.device)
    found = _nearest(table, shape) if table else None
    measured = found[0].configs.get(name) if found else None
    return Route(name, measured or default_config(name, shape), "asked for by the caller")


def normal(shape: Shape) -> Shape:
    """The same call without conditions that change nothing: a window over everything, a causal rule on one query."""
    if shape.window is not None and shape.window >= shape.L_kv:
        shape = replace(shape, window=None, causal=True)
    return replace(shape, causal=False) if shape.L_q == 1 and shape.causal else shape


def can_run(name: str, shape: Shape) -> bool:
    """Whether kernel `name` can compute this (normal) shape at all."""
    D = shape.D
    if name == "reference":
        return True
    if name == "splitk":
        few = shape.L_q <= SPLITK_MAX_QUERIES and shape.group * shape.L_q <= SPLITK_MAX_ROWS
        return few and 16 <= D <= SPLITK_MAX_HEAD_DIM and _power_of_two(D)
    if name == "standard":
        return D % 16 == 0 and 16 <= D <= STANDARD_MAX_HEAD_DIM
    # torch knows no window and no bound on the device, and aligns causal masks top-left
    aligned = not shape.causal or shape.L_q == shape.L_kv
    if shape.window is not None or shape.bounded or not aligned or (shape.masked and shape.causal):
        return False
    if name == "torch_flash":
        return not shape.masked and D <= 256 and D % 8 == 0 and dtype_bytes(shape.dtype) == 2
    if name == "torch_cudnn":
        return not shape.masked and D <= 256 and D % 8 == 0 and dtype_bytes(shape.dtype) == 2
    return name in TORCH_KERNELS


def default_config(kernel: str, shape: Shape) -> Config:
    """The configuration of a kernel where none was measured: what was best on an H200, by the bytes of a row."""
    row_bytes = shape.D * dtype_bytes(shape.dtype)
    exact = shape.dtype == "float32"  # no tensor cores: products of large tiles spill
    small = max(16, min(64, 16384 // row_bytes))  # key rows of one tile of 16 KiB
    if kernel == "splitk":
        stages = 2 if exact else 4 if row_bytes > 512 else 3
        if shape.visible <= ONE_LAUNCH_UP_TO:
            return SplitKConfig(block_n=small, num_stages=stages, programs_per_sm=1, min_rows=64, dependent=True)
        return SplitKConfig(
            block_n=small,
            num_stages=stages,
            programs_per_sm=1 if row_bytes > 512 else 2,
            min_rows=32,
            reduce="apart",
            overlap=True,
            dependent=True,
            prefetch_rows=32,
        )
    if kernel == "standard":
        if shape.group * shape.L_q <= 16:
            return StandardConfig(block_m=16, block_n=min(32, small), num_stages=2 if exact else 3)
        if exact:
            return StandardConfig(
                block_m=32 if shape.D <= 64 else 16, block_n=32 if shape.D <= 128 else 16, num_stages=1
            )
        if row_bytes > 512:
            return StandardConfig(block_m=64, block_n=32, num_warps=8, tma=True)
        if row_bytes > 256:
            return StandardConfig(block_m=128, block_n=64, num_warps=8, tma=True)
        return StandardConfig(block_m=64, block_n=64, num_stages=3, tma=True)
    return None


def _rule(shape: Shape) -> tuple[str, str]:
    if shape.L_q == 1 and shape.visible >= SPLITK_FROM and can_run("splitk", shape):
        return "splitk", f"one query over {SPLITK_FROM} keys or more, head_dim {shape.D} a power of two"
    if can_run("standard", shape):
        return "standard", "several queries, few keys, or a head_dim that is no power of two"
    return "reference", f"head_dim {shape.D} is no multiple of 16 up to {STANDARD_MAX_HEAD_DIM}"


def _kind(L_q: int) -> str:
    return "decode" if L_q == 1 else "verify" if L_q <= SPLITK_MAX_QUERIES else "prefill"


def _nearest(table: Table, shape: Shape) -> tuple[Row, float] | None:
    """The measured row most like `shape` in log2 of its sizes, among those of its kind, head_dim and element size."""
    best: tuple[Row, float] | None = None
    for row in table.rows:
        have = row.shape
        alike = (
            have.D == shape.D
            and dtype_bytes(have.dtype) == dtype_bytes(shape.dtype)
            and _kind(have.L_q) == _kind(shape.L_q)
            and (_kind(have.L_q) == "decode" or (have.window is None) == (shape.window is None))
        )
        if alike:
            distance = (
                abs(math.log2(have.B * have.K / (shape.B * shape.K)))
                + abs(math.log2(have.visible / shape.visible))
                + 0.5 * abs(math.log2(have.group / shape.group))
                + 0.5 * abs(math.log2(have.L_q / shape.L_q))
            )
            if best is None or distance < best[1]:
                best = row, distance
    return best


def _power_of_two(n: int) -> bool:
    return n & (n - 1) == 0
