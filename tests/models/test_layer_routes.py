"""The routes that a swap gives its layers: forced kernels, and --no-pdl reaching into the measured configuration."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.sdpa.route import Shape, route
from models import attention
from models.attention import layer_routes
from models.spec import AttentionSpec

SLIDING = AttentionSpec("sliding", 32, 16, 256, 1.0, window=1024)


@pytest.fixture
def on_h100(monkeypatch):
    """Routes are host-side facts: ask for those of a GPU that is not here."""
    monkeypatch.setattr(attention, "device_name", lambda device: "NVIDIA H100 80GB HBM3")


def routes(**options):
    return layer_routes(SLIDING, 4096, torch.bfloat16, torch.device("cpu"), **{"name": None, "pdl": True, **options})


def test_measured_route_of_a_sliding_layer(on_h100):
    found = routes()
    assert found.decode.kernel == "splitk"
    assert "measured on NVIDIA H100 80GB HBM3 at this shape" in found.decode.why
    assert found.decode.config.dependent


def test_no_pdl_reaches_the_kernel(on_h100):
    config = routes(pdl=False).decode.config
    assert not config.dependent
    assert not config.overlap


def test_forced_kernels(on_h100):
    assert routes(name="standard").decode.kernel == "standard"
    assert routes(name="standard").prefill.kernel == "standard"
    assert routes(name="splitk").decode.kernel == "splitk"
    assert routes(name="splitk").prefill.kernel == "standard"


def test_a_cpu_says_that_it_takes_the_twin():
    assert routes().decode.kernel == "reference"


def test_prompts_of_every_length_take_one_kernel(on_h100):
    """The router would take cuDNN, which plans every new length, or for short prompts another configuration."""
    spec = replace(SLIDING, kind="full", head_dim=128, window=None)
    h100 = attention.device_name(None)
    by_length = {
        length: route(Shape(1, 32, 16, length, length, 128, causal=True, device=h100)).kernel for length in (512, 2401)
    }
    assert by_length == {512: "standard", 2401: "torch_cudnn"}
    found = layer_routes(spec, 4096, torch.bfloat16, torch.device("cpu"), name=None, pdl=True).prefill
    assert found.kernel == "standard"


def test_a_head_dim_that_no_kernel_takes_falls_to_the_twin(on_h100):
    spec = replace(SLIDING, head_dim=72)
    found = layer_routes(spec, 4096, torch.bfloat16, torch.device("cpu"), name=None, pdl=True)
    assert found.prefill.kernel == found.decode.kernel == "reference"
