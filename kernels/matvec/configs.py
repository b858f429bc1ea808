"""Launch configurations of the matvec kernels: data, chosen by shape class; nothing is tuned at run time.

The figures behind them are in scripts/results/NOTES.md ("Fused layer").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MatvecConfig:
    """How one matvec is cut into programs.

    rows: output rows a program computes at once (of gate and of up each, in the gated kernel).
    block: weights of one row that a program loads at once; a power of two.
    warps: warps a program.
    preload: tiles of `block` columns in flight, and loaded before the dependent-launch wait.
    series: groups of `rows` that a program computes one after the other; the tiles in flight reach across them.
    trigger: when the next kernel may start under dependent launch: "early" at entry, "late" after the products.
    """

    rows: int = 1
    block: int = 2048
    warps: int = 4
    preload: int = 3
    series: int = 2
    trigger: Literal["early", "late"] = "early"


def config_for(rows: int, cols: int, *, gated: bool = False) -> MatvecConfig:
    """The configuration for a [rows, cols] matrix (rows counts gate and up together in a gated product)."""
    if cols <= 2048:
        return MatvecConfig(rows=1, block=1024, warps=2, preload=2)
    if cols >= 16384:
        # The row alone is long enough to keep the stream going; two at once share the loads of x.
        return MatvecConfig(rows=2, block=1024, preload=6, series=1)
    return MatvecConfig()
