"""Families: tensor names of every kind of source reach the model, and what cannot be computed is refused by its key."""

import pytest
import torch

from models.errors import LoadError
from models.families import FAMILIES, family_for_gguf, family_for_model_type
from models.load.fill import find_slots

TINY = {
    "gemma4": dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, num_global_key_value_heads=1, head_dim=8, global_head_dim=16, attention_k_eq_v=True,
        sliding_window=8, final_logit_softcapping=30.0,
    ),
    "gemma3": dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8, sliding_window=8, query_pre_attn_scalar=8,
    ),
    "qwen3": dict(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=False,
    ),
}  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}
GGUF_LAYER_0 = {
    "gemma4": 14 - 1 + 1,  # 14 tensors in a sliding layer
    "gemma3": 13,
    "qwen3": 11,
}


def tiny_model(name):
    family = BY_NAME[name]
    with torch.device("meta"):
        return family.build(family.text_config(TINY[name]))


@pytest.mark.parametrize("name", TINY)
def test_gguf_names_are_exactly_the_model(name):
    """Every tensor of the model has one GGUF name: a wrong or absent row of the table leaves a hole."""
    family, wanted = BY_NAME[name], find_slots(tiny_model(name))
    layers = range(TINY[name]["num_hidden_layers"])
    gguf = [f"blk.{i}.{suffix}" for i in layers for suffix in family.gguf_blocks] + list(family.gguf_others)
    reached = [found for found in map(family.gguf_name, gguf) if found is not None]
    assert len(reached) == len(set(reached))
    if name == "gemma4":  # the full layer has no v_proj
        reached.remove("model.layers.5.self_attn.v_proj.weight")
    assert set(reached) == wanted.keys()
    assert sum(found.startswith("model.layers.0.") for found in reached) == GGUF_LAYER_0[name]


@pytest.mark.parametrize("name", TINY)
def test_unknown_gguf_names_come_back(name):
    for odd in ("blk.0.attn_sinks.weight", "blk.x.attn_q.weight", "per_layer_model_proj.weight"):
        assert BY_NAME[name].gguf_name(odd) == odd


@pytest.mark.parametrize("name", ["gemma4", "gemma3"])
def test_multimodal_checkpoint_names(name):
    to = BY_NAME[name].checkpoint_name
    q = "model.layers.3.self_attn.q_proj.weight"
    assert to(q) == q
    assert to("model.language_model.layers.3.self_attn.q_proj.weight") == q
    assert to("language_model.model.layers.3.self_attn.q_proj.weight") == q
    assert to("language_model.lm_head.weight") == to("lm_head.weight") == "lm_head.weight"
    assert to("model.language_model.embed_tokens.weight") == "model.embed_tokens.weight"
    for tower in (
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", "model.vision_tower.x",
        "model.embed_vision.a",
        "model.audio_tower.layers.0.y", "model.embed_audio.z", "multi_modal_projector.mm_soft_emb_norm.weight",
    ):  # fmt: skip
        assert to(tower) is None
    assert to("model.speech_tower.x") == "model.speech_tower.x"  # not on the list: fill will refuse it


def test_gemma3_norms_lose_the_one_that_gguf_adds():
    gemma3 = BY_NAME["gemma3"]
    stored = torch.tensor([1.0, 1.5, 0.25])
    name = "model.layers.0.self_attn.q_norm.weight"
    assert torch.equal(gemma3.from_gguf(name, stored), stored - 1)
    assert torch.equal(gemma3.from_gguf("model.norm.weight", stored), stored - 1)
    assert torch.equal(gemma3.from_gguf("model.layers.0.mlp.up_proj.weight", stored), stored)
    for other in ("gemma4", "qwen3"):
        assert torch.equal(BY_NAME[other].from_gguf(name, stored), stored)


UNSUPPORTED = [
    ("gemma4", "enable_moe_block", True),
    ("gemma4", "hidden_size_per_layer_input", 256),
    ("gemma4", "num_kv_shared_layers", 2),
    ("gemma4", "use_bidirectional_attention", "all"),
    ("gemma3", "use_bidirectional_attention", True),
    ("gemma3", "attn_logit_softcapping", 50.0),
    ("gemma3", "attention_bias", True),
    ("gemma3", "hidden_activation", "relu"),
    ("qwen3", "attention_bias", True),
    ("qwen3", "num_experts", 8),
    ("qwen3", "hidden_act", "gelu"),
    ("qwen3", "auto_map", {"AutoModel": "evil.Model"}),
    ("qwen3", "quantization_config", {"quant_method": "gptq"}),
]


@pytest.mark.parametrize(("name", "key", "value"), UNSUPPORTED)
def test_what_cannot_be_computed_is_refused_by_key(name, key, value):
    with pytest.raises(LoadError, match=rf"config.json: {key} = "):
        BY_NAME[name].text_config({**TINY[name], key: value})


def test_refusals_reach_into_text_config():
    nested = {"model_type": "gemma4", "text_config": {**TINY["gemma4"], "enable_moe_block": True}}
    with pytest.raises(LoadError, match="enable_moe_block"):
        BY_NAME["gemma4"].text_config(nested)


def test_harmless_values_pass():
    config = BY_NAME["gemma4"].text_config(
        {**TINY["gemma4"], "use_bidirectional_attention": "vision", "num_experts": None}
    )
    assert config.hidden_size_per_layer_input == 0


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope", "nonsense"])
def test_rope_that_depends_on_the_length_is_refused(rope_type):
    """A captured decode step cannot recompute inv_freq as the context grows."""
    rope = {
        "rope_type": rope_type,
        "rope_theta": 1e6,
        "factor": 2.0,
        "short_factor": [1.0] * 8,
        "long_factor": [1.0] * 8,
    }
    with pytest.raises(LoadError, match="rope"):
        BY_NAME["qwen3"].text_config({**TINY["qwen3"], "rope_parameters": rope})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "many"), ("num_hidden_layers", 0), ("num_hidden_layers", 10**12), ("num_hidden_layers", None),
        ("num_key_value_heads", 3), ("vocab_size", -1), ("layer_types", ["full_attention"]), ("head_dim", 0),
        ("layer_types", ["full_attention", "linear_attention"]), ("rope_parameters", {"rope_type": 3}),
    ],
)  # fmt: skip
def test_malformed_configs_are_load_errors(key, value):
    with pytest.raises(LoadError, match=r"config\.json"):
        BY_NAME["qwen3"].text_config({**TINY["qwen3"], key: value})


def test_outer_values_of_a_multimodal_config_count():
    nested = {
        "model_type": "gemma3",
        "text_config": TINY["gemma3"],
        "eos_token_id": [1, 7],
        "tie_word_embeddings": True,
    }
    config = BY_NAME["gemma3"].text_config(nested)
    assert config.eos_token_id == [1, 7]
    assert config.tie_word_embeddings is True


def test_look_up_by_name():
    assert family_for_model_type("gemma4").name == family_for_model_type("gemma4_text").name == "gemma4"
    assert family_for_gguf("qwen3").name == "qwen3"
    with pytest.raises(LoadError, match=r"'qwen3_moe' is not supported; the closest is 'qwen3'. Supported: gemma4"):
        family_for_model_type("qwen3_moe")
    with pytest.raises(LoadError, match=r"general.architecture 'llama' is not supported"):
        family_for_gguf("llama")
    with pytest.raises(LoadError, match="not supported"):
        family_for_gguf(None)


def gemma4_metadata():
    """The keys that llama.cpp's converter writes for the 31B shape, cut to 12 layers."""
    sliding = [(i + 1) % 6 != 0 for i in range(12)]
    a = "gemma4"
    return {
        f"{a}.block_count": 12, f"{a}.context_length": 262144, f"{a}.embedding_length": 5376,
        f"{a}.attention.head_count": 32,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-6, f"{a}.attention.key_length": 512, f"{a}.rope.freq_base": 1e6,
        f"{a}.feed_forward_length": 21504, f"{a}.attention.head_count_kv": [16 if s else 4 for s in sliding],
        f"{a}.attention.key_length_swa": 256, f"{a}.attention.sliding_window": 1024,
        f"{a}.attention.sliding_window_pattern": sliding, f"{a}.attention.shared_kv_layers": 0,
        f"{a}.embedding_length_per_layer_input": 0, f"{a}.final_logit_softcapping": 30.0,
        f"{a}.rope.freq_base_swa": 1e4,
    }  # fmt: skip


def test_gemma4_config_from_gguf_is_the_catalogue_config():
    from models.catalog import CATALOG

    shapes = {
        "token_embd.weight": (262144, 5376),
        **{f"blk.{i}.attn_v.weight": (1, 1) for i in range(12) if i % 6 != 5},
    }
    gemma4 = BY_NAME["gemma4"]
    made = gemma4.text_config(gemma4.config_from_gguf(gemma4_metadata(), shapes))
    packaged = CATALOG["gemma4-31b"].config()
    cut = gemma4.text_config({**packaged, "num_hidden_layers": 12, "layer_types": packaged["layer_types"][:12]})
    assert gemma4.spec(made) == gemma4.spec(cut)
    assert made.rope_parameters == cut.rope_parameters
    assert made.rms_norm_eps == cut.rms_norm_eps


def test_gemma3_27b_scale_from_gguf_depth():
    a, gemma3 = "gemma3", BY_NAME["gemma3"]
    metadata = {
        f"{a}.block_count": 62, f"{a}.embedding_length": 5376, f"{a}.attention.head_count": 32,
        f"{a}.feed_forward_length": 21504, f"{a}.attention.head_count_kv": 16, f"{a}.attention.key_length": 128,
        f"{a}.attention.sliding_window": 1024,
        f"{a}.attention.layer_norm_rms_epsilon": 1e-6, f"{a}.rope.scaling.type": "linear",
        f"{a}.rope.scaling.factor": 8.0,
        f"{a}.context_length": 131072,
    }  # fmt: skip
    config = gemma3.text_config(gemma3.config_from_gguf(metadata, {"token_embd.weight": (262208, 5376)}))
    from models.catalog import CATALOG

    packaged = gemma3.text_config(CATALOG["gemma3-27b"].config())
    assert gemma3.spec(config) == gemma3.spec(packaged)
    assert config.rope_parameters == packaged.rope_parameters


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("gemma4.block_count", None, "block_count is missing"),
        ("gemma4.block_count", "twelve", "block_count is str, expected a number"),
        ("gemma4.block_count", 12.5, "expected a positive integer"),
        ("gemma4.block_count", 1 << 31, "expected at most"),
        ("gemma4.attention.sliding_window_pattern", [True], "has 1 values, expected 12"),
        ("gemma4.attention.head_count_kv", "4", "not whole numbers"),
        ("gemma4.attention.head_count_kv", 0, "config"),
        ("gemma4.attention.shared_kv_layers", 20, "shared_kv_layers = 20 is not supported"),
        ("gemma4.embedding_length_per_layer_input", 256, "is not supported"),
        ("gemma4.expert_count", 128, "is not supported"),
    ],
)
def test_gguf_metadata_faults_name_the_key(key, value, message):
    metadata = {k: v for k, v in {**gemma4_metadata(), key: value}.items() if v is not None}
    gemma4 = BY_NAME["gemma4"]
    with pytest.raises(LoadError, match=message):
        gemma4.text_config(gemma4.config_from_gguf(metadata, {"token_embd.weight": (262144, 5376)}))
