"""The routes that a swap gives its layers: forced kernels, and --no-pdl reaching into the measured configuration."""

from __future__ import annotations

import pytest
import torch

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
    assert found.prefill is None


def test_no_pdl_reaches_the_kernel(on_h100):
    config = routes(pdl=False).decode.config
    assert not config.dependent
    assert not config.overlap


def test_forced_kernels(on_h100):
    assert routes(name="standard").decode.kernel == "standard"
    assert routes(name="standard").prefill == "standard"
    assert routes(name="splitk").decode.kernel == "splitk"
    assert routes(name="splitk").prefill is None


def test_a_cpu_says_that_it_takes_the_twin():
    assert routes().decode.kernel == "reference"
