"""Matrix-vector products: every prologue and epilogue, awkward sizes, every tile depth, against the fp32 twin."""

from __future__ import annotations

import pytest
import torch

from kernels.matvec import DenseWeight, MatvecConfig, config_for, matvec, matvec_gated, reference
from kernels.matvec.dense import launch_dense
from kernels.norm import Norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(1, 63), (7, 100), (6, 256), (10, 1000), (64, 128)]
CONFIGS = [
    MatvecConfig(rows=1, block=64, warps=1, preload=1),
    MatvecConfig(rows=2, block=128, warps=2, preload=2, trigger="early"),
    MatvecConfig(rows=4, block=32, warps=1, preload=4),
    MatvecConfig(rows=1, block=64, warps=1, preload=3, series=3),
    MatvecConfig(rows=2, block=256, warps=2, preload=2, series=2),
]


def _data(N: int, K: int, dtype: torch.dtype = torch.float32) -> tuple[DenseWeight, torch.Tensor, torch.Tensor, Norm]:
    torch.manual_seed(N * 1009 + K)
    weight = (torch.randn(N, K, device=DEVICE) / K**0.5).to(dtype)
    x, residual = ((torch.randn(n, device=DEVICE) * 3).to(dtype) for n in (K, N))
    return DenseWeight(weight), x, residual, Norm(torch.randn(K, device=DEVICE).to(dtype), 1e-6, 1.0)


def _run(weight: DenseWeight, x: torch.Tensor, outputs: int, **options: object) -> torch.Tensor:
    defaults = dict(residual=None, norm=None, softcap=None, activation=None, launch=CONFIGS[0], pdl=False)
    out = torch.full((outputs,), float("nan"), device=DEVICE, dtype=x.dtype)
    launch_dense(weight.data, x, out, **{**defaults, **options})
    return out


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[found.dtype]
    torch.testing.assert_close(found.float(), expected.float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("launch", CONFIGS)
@pytest.mark.parametrize(("N", "K"), SIZES)
def test_sizes_and_depths(N: int, K: int, launch: MatvecConfig) -> None:
    weight, x, residual, norm = _data(N, K)
    for options in (
        {},
        {"residual": residual},
        {"norm": norm},
        {"norm": Norm(None, 1e-5)},
        {"softcap": 0.7},
        {"residual": residual, "norm": norm, "softcap": 30.0},
    ):
        _close(_run(weight, x, N, launch=launch, **options), reference.matvec(weight, x, **options))


@pytest.mark.parametrize("launch", CONFIGS)
@pytest.mark.parametrize("activation", ["gelu_tanh", "silu"])
@pytest.mark.parametrize(("N", "K"), [(2, 63), (14, 100), (10, 1000)])
def test_gated(N: int, K: int, activation: str, launch: MatvecConfig) -> None:
    weight, x, _, norm = _data(N, K)
    for options in ({}, {"norm": norm}):
        found = _run(weight, x, N // 2, launch=launch, activation=activation, **options)
        _close(found, reference.matvec_gated(weight, x, activation=activation, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_storage(dtype: torch.dtype) -> None:
    weight, x, residual, norm = _data(10, 300, dtype)
    _close(_run(weight, x, 10, residual=residual, norm=norm), reference.matvec(weight, x, residual=residual, norm=norm))
    found = _run(weight, x, 5, activation="silu", norm=norm)
    _close(found, reference.matvec_gated(weight, x, activation="silu", norm=norm))


def test_default_configs_run_every_model_width() -> None:
    """The table's block and depth for the widths served; 3 rows keep the interpreter quick."""
    for K in (640, 1024, 4096, 5376, 21504):
        weight, x, _, _ = _data(4, K)
        _close(_run(weight, x, 4, launch=config_for(4, K)), reference.matvec(weight, x))
        gated = _run(weight, x, 2, activation="silu", launch=config_for(4, K, gated=True))
        _close(gated, reference.matvec_gated(weight, x, activation="silu"))


def test_row_slice_of_a_packed_matrix() -> None:
    weight, x, _, _ = _data(10, 64)
    part = DenseWeight(weight.data[3:9])
    _close(_run(part, x, 6), reference.matvec(weight, x)[3:9])


def test_residual_may_be_the_output() -> None:
    weight, x, residual, _ = _data(6, 256)
    expected = reference.matvec(weight, x, residual=residual)
    launch_dense(
        weight.data, x, residual,
        residual=residual, norm=None, softcap=None, activation=None, launch=CONFIGS[1], pdl=False,
    )  # fmt: skip
    _close(residual, expected)


def test_entry_keeps_leading_dimensions_and_output_type() -> None:
    weight, x, _, _ = _data(6, 256)
    out = matvec(weight, x.view(1, 1, -1), out_dtype=torch.float64)
    assert out.shape == (1, 1, 6)
    assert out.dtype == torch.float64
    assert matvec_gated(weight, x.view(1, -1), activation="silu").shape == (1, 3)


def test_entry_names_what_does_not_fit() -> None:
    weight, x, residual, _ = _data(7, 100)
    with pytest.raises(ValueError, match=r"x has shape \(99,\).*expected 100"):
        matvec(weight, x[:99])
    with pytest.raises(ValueError, match="residual"):
        matvec(weight, x, residual=residual[:3])
    with pytest.raises(ValueError, match="7 rows"):
        matvec_gated(weight, x, activation="silu")
    with pytest.raises(ValueError, match="contiguous"):
        DenseWeight(weight.data.t())
