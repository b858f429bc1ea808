"""The Hugging Face model is the specification: logits and greedy tokens of the swapped model must be its own."""

from __future__ import annotations

import copy

import pytest
import torch

from models.cache import KVCaches
from models.families import family_for_model_type
from models.fused_model import fuse_layers
from models.lm import RoutedLM
from models.packing import pack_in_place, projection_packs
from models.swap import swap_attention
from runner.engine import Engine

CTX = 160
WINDOW = 8
GENERATED = 64


def argmax_sampler(logits: torch.Tensor, _index: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


def routed_engine(model: torch.nn.Module, *, chunk: int, attention: str = "routed", fuse: str = "none") -> Engine:
    """An engine over a swapped copy of `model`; the original stays Hugging Face's."""
    model = copy.deepcopy(model)
    family = family_for_model_type(model.config.model_type)
    spec = family.spec(model.config)
    caches = KVCaches(spec, CTX, device=torch.device("cpu"), dtype=torch.float32)
    report = swap_attention(model, spec, caches, attention)
    assert {row.new for row in report.rows} == {"RoutedAttention"}
    assert len(report.rows) == model.config.num_hidden_layers
    if fuse != "none":
        pack_in_place(model, projection_packs(model))
        fused = fuse_layers(model, family, spec, pdl=False, fuse_attention=fuse == "all")
        assert [row.new for row in fused.rows] == ["FusedDecoderLayer"] * model.config.num_hidden_layers
    return Engine(RoutedLM(model, caches), device=torch.device("cpu"), prefill_chunk=chunk, cuda_graph=False)


def prompt(length: int, seed: int = 1) -> list[int]:
    return torch.randint(1, 97, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy(engine: Engine, ids: list[int], count: int) -> list[int]:
    engine.prepare(argmax_sampler)
    first = int(engine.prefill(ids).argmax())
    engine.begin_decode(first, count - 1)
    return [first, *engine.tokens()]


@pytest.mark.parametrize("fuse", ["none", "layer", "all"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 512])
def test_logits_equal_hugging_face(tiny, chunk, fuse):
    """Every position's logits, with chunks shorter than, straddling and longer than the window."""
    _, model = tiny
    ids = prompt(3 * WINDOW + 5)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    found = routed_engine(model, chunk=chunk, fuse=fuse).teacher_forced(ids)
    assert found.shape == expected.shape
    assert expected.std() > 0.1, "logits too flat to prove anything"
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("fuse", ["none", "layer", "all"])
@pytest.mark.parametrize("length", [1, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3, 5 * WINDOW])
def test_greedy_tokens_equal_generate(tiny, length, fuse):
    """64 tokens, so every prompt length ends far past the window."""
    _, model = tiny
    ids = prompt(length)
    expected = model.generate(torch.tensor([ids]), max_new_tokens=GENERATED, min_new_tokens=GENERATED, do_sample=False)[
        0, length:
    ].tolist()
    assert len(set(expected)) > 2, "a constant continuation would prove little"
    assert greedy(routed_engine(model, chunk=5, fuse=fuse), ids, GENERATED) == expected


def test_engine_serves_a_second_sequence(tiny):
    """Caches keep the first sequence's rows; the second must not see them."""
    _, model = tiny
    engine = routed_engine(model, chunk=6)
    greedy(engine, prompt(40, seed=2), 20)
    assert greedy(engine, prompt(9), 30) == greedy(routed_engine(model, chunk=512), prompt(9), 30)
