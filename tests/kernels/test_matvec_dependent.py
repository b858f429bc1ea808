"""Dependent launch on the GPU: a kernel that reads too early is wrong without an error, so bits are compared."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.matvec import DenseWeight, MatvecConfig, matvec, matvec_gated
from kernels.norm import Norm, rms_norm, sandwich
from kernels.pdl import launch_options, supports_pdl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and supports_pdl(torch.device("cuda"))),
        reason="needs a GPU of compute capability 9.0",
    ),
]


def _step(weights: list[tuple[DenseWeight, DenseWeight]], norm: Norm, h: torch.Tensor, config: MatvecConfig, pdl: bool):
    """A residual stack of gated products and seams; every buffer is reused, so a missed wait shows."""
    out, act, branch = h.clone(), h.new_empty(1, weights[0][1].cols), torch.empty_like(h)
    x = rms_norm(out, norm)
    for gate_up, down in weights:
        matvec_gated(gate_up, x, activation="silu", out=act, launch=config, pdl=pdl)
        matvec(down, act, out=branch, launch=config, pdl=pdl)
        sandwich(out, branch, post=norm, pre=norm, h_out=out, x_out=x, pdl=pdl)
    return out


@pytest.mark.parametrize("trigger", ["early", "late"])
@pytest.mark.parametrize("config", [MatvecConfig(), MatvecConfig(rows=2, block=1024, preload=6, series=1)])
def test_replays_give_the_bits_of_plain_launches(config: MatvecConfig, trigger: str) -> None:
    torch.manual_seed(0)
    K, F = 2560, 5120

    def weight(rows: int, cols: int) -> DenseWeight:
        return DenseWeight((torch.randn(rows, cols, device="cuda") / cols**0.5).bfloat16())

    weights = [(weight(2 * F, K), weight(K, F)) for _ in range(4)] * 6
    norm = Norm(torch.rand(K, device="cuda").bfloat16(), 1e-6, 1.0)
    h = torch.randn(1, K, device="cuda").bfloat16()
    config = replace(config, trigger=trigger)
    expected = _step(weights, norm, h, config, pdl=False)
    _step(weights, norm, h, config, pdl=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = _step(weights, norm, h, config, pdl=True)
    for _ in range(50):
        found.fill_(float("nan"))
        graph.replay()
        assert torch.equal(found, expected)


def test_the_launch_option_is_only_named_when_on() -> None:
    assert launch_options(True) == {"launch_pdl": True}
    assert launch_options(False) == {}
