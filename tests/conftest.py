"""Fixtures that several test folders share. No file of tests imports another."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, see runner.cli.main

import pytest
import torch

import models.hf_guard  # noqa: F401  before transformers, always


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


TINY_GEMMA4 = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    global_head_dim=32,
    num_global_key_value_heads=1,
    attention_k_eq_v=True,
    hidden_size_per_layer_input=0,
    sliding_window=8,
    final_logit_softcapping=30.0,
    max_position_embeddings=512,
    eos_token_id=None,
    pad_token_id=0,
)
TINY_GEMMA3 = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=16,
    query_pre_attn_scalar=24,
    sliding_window=8,
    max_position_embeddings=512,
    rope_parameters={
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    },
    eos_token_id=None,
    pad_token_id=0,
)
TINY_QWEN3 = dict(
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=10,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=512,
    tie_word_embeddings=False,
    eos_token_id=None,
    pad_token_id=0,
)
# Name -> (family, overrides of its tiny config): odd GQA ratios, K = V, MHA and MQA among them.
TINY_MODELS = {
    "gemma4": ("gemma4", TINY_GEMMA4),
    "gemma4-gqa5": ("gemma4", TINY_GEMMA4 | dict(num_attention_heads=10, num_global_key_value_heads=2)),
    "gemma4-separate-values": ("gemma4", TINY_GEMMA4 | dict(attention_k_eq_v=False)),
    "gemma3": ("gemma3", TINY_GEMMA3),
    "gemma3-mha": ("gemma3", TINY_GEMMA3 | dict(num_key_value_heads=4)),
    "qwen3": ("qwen3", TINY_QWEN3),
    "qwen3-tied-gqa3": ("qwen3", TINY_QWEN3 | dict(num_attention_heads=6, tie_word_embeddings=True)),
}


def build_tiny(name: str, seed: int = 0) -> torch.nn.Module:
    """A Hugging Face causal LM, fp32, eval, with weights large enough that every part of it shapes the logits."""
    from transformers import (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        Gemma4ForCausalLM,
        Gemma4TextConfig,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    family, config = TINY_MODELS[name]
    classes = {
        "gemma4": (Gemma4TextConfig, Gemma4ForCausalLM),
        "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }
    make_config, make_model = classes[family]
    torch.manual_seed(seed)
    model = make_model(make_config(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.2)
        # Small embeddings, so that a tied head does not simply repeat the last token.
        model.model.embed_tokens.weight.mul_(0.15)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("layer_scalar"):
                buffer.uniform_(0.7, 1.3)
    return model.requires_grad_(False)


@pytest.fixture(params=TINY_MODELS)
def tiny(request: pytest.FixtureRequest) -> tuple[str, torch.nn.Module]:
    """(family name, tiny Hugging Face model) for every family and oddity in TINY_MODELS."""
    return TINY_MODELS[request.param][0], build_tiny(request.param)


@pytest.fixture
def build_tiny_model():
    """The builder behind `tiny`, for tests that need one model by name or another seed."""
    return build_tiny
