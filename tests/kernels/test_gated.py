"""Gated activation: twin against Hugging Face's activations, kernel against the twin."""

from __future__ import annotations

import pytest
import torch

from kernels.gated import gated, reference
from kernels.gated.kernel import launch_gated

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("ours", "theirs"), [("gelu_tanh", "gelu_pytorch_tanh"), ("silu", "silu")])
def test_twin_is_the_hugging_face_activation(ours: str, theirs: str) -> None:
    from transformers.activations import ACT2FN

    gate, up = torch.linspace(-30, 30, 501), torch.randn(501)
    torch.testing.assert_close(gated(torch.cat((gate, up)), activation=ours), ACT2FN[theirs](gate) * up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["gelu_tanh", "silu"])
@pytest.mark.parametrize(("rows", "F"), [(1, 63), (3, 1000), (2, 4096)])
def test_kernel(rows: int, F: int, activation: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate_up = (torch.randn(rows, 2 * F, device=DEVICE) * 4).to(dtype)
    out = torch.full((rows, F), float("nan"), device=DEVICE, dtype=dtype)
    launch_gated(gate_up, activation, out)
    expected = reference.gated(gate_up, activation=activation)
    tolerance = 4e-6 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(out.float(), expected.float(), rtol=tolerance, atol=tolerance)


def test_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match="'relu'"):
        gated(torch.randn(1, 8, device=DEVICE), activation="relu")
