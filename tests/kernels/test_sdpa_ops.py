"""torch.compile and torch.export see one operator, and compute what eager computes."""

from __future__ import annotations

import pytest
import torch

from kernels.sdpa import sdpa, sdpa_reference
from kernels.sdpa.ops import compiled_sdpa

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def draw(L_q=1):
    make = lambda *size: torch.randn(*size, device=DEVICE)  # noqa: E731
    return make(1, 4, L_q, 64), make(1, 2, 300, 64), make(1, 2, 300, 64)


class Attention(torch.nn.Module):
    """Enough of a model around the call for a graph to have something before and after it."""

    def forward(self, q, k, v, kv_len):
        return sdpa(q * 2, k, v, kv_len=kv_len, is_causal=True, scale=0.1) + 1


@pytest.mark.parametrize("kv_len", [None, 257, torch.tensor([257])], ids=["all", "int", "device"])
def test_compiles_as_one_graph(kv_len):
    kv_len = kv_len.to(DEVICE) if isinstance(kv_len, torch.Tensor) else kv_len
    q, k, v = draw(L_q=3)
    compiled = torch.compile(Attention(), backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(q, k, v, kv_len), Attention()(q, k, v, kv_len))


def test_compiles_when_it_writes_into_out():
    q, k, v = draw()
    out = torch.full_like(q, float("nan"))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def step(q, k, v, out):
        return sdpa(q, k, v, out=out) * 2

    torch.testing.assert_close(step(q, k, v, out), sdpa_reference(q, k, v) * 2)
    torch.testing.assert_close(out, sdpa_reference(q, k, v))


def test_exports_and_holds_the_operator():
    q, k, v = draw()
    length = torch.tensor([99], device=DEVICE)
    program = torch.export.export(Attention(), (q, k, v, length))
    assert any("routing_sdpa" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(q, k, v, length), Attention()(q, k, v, length))


def test_fake_results_agree_with_real_ones():
    q, k, v = draw(L_q=3)
    torch.library.opcheck(torch.ops.routing_sdpa.sdpa.default, (q, k, v, None, True, None, 200, None, None, None), {})
    torch.testing.assert_close(
        compiled_sdpa(q, k, v, None, True, None, 200, 64, "standard", None),
        sdpa_reference(q, k, v, is_causal=True, kv_len=200, window=64),
    )
