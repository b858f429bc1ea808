"""A Hugging Face model that names "routing_sdpa" computes what it computes with its own "sdpa"."""

from __future__ import annotations

import pytest
import torch

from kernels.sdpa import api
from models import hf_attention_interface


@pytest.fixture
def counted(monkeypatch):
    """The calls that reach our sdpa, so that a test can prove it ran."""
    seen: list[tuple[int, ...]] = []
    real = api.sdpa

    def sdpa(query, *arguments, **options):
        seen.append(tuple(query.shape))
        return real(query, *arguments, **options)

    monkeypatch.setattr(hf_attention_interface, "sdpa", sdpa)
    return seen


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["gemma4", "gemma3", "qwen3"])
def test_generates_the_same_tokens(name, cache, build_tiny_model, counted):
    """Past the sliding window, batch of two with padding, growing and static caches."""
    model = build_tiny_model(name)
    prompt = torch.randint(1, 97, (2, 13), generator=torch.Generator().manual_seed(1))
    padding = torch.ones_like(prompt)
    padding[0, :4] = 0
    for mask in (torch.ones_like(prompt), padding):
        answers = []
        for attention in ("sdpa", hf_attention_interface.NAME):
            model.set_attn_implementation(attention)
            answers.append(
                model.generate(
                    prompt, attention_mask=mask, max_new_tokens=12, do_sample=False, cache_implementation=cache
                )
            )
        assert torch.equal(*answers)
    assert any(shape[2] == 1 for shape in counted)
    assert any(shape[2] > 1 for shape in counted)


def test_gradients_take_hugging_faces_own_way(build_tiny_model, counted):
    model = build_tiny_model("qwen3").requires_grad_(True)
    model.set_attn_implementation(hf_attention_interface.NAME)
    model(torch.randint(1, 97, (1, 5))).logits.sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    assert not counted
