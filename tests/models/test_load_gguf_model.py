"""Whole GGUF models, written from tiny Hugging Face models: what is read back computes the same logits."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType
from gguf.quants import quantize

from models.errors import LoadError
from models.families import FAMILIES
from models.load.fill import build_on_meta, fill, find_slots
from models.load.resolve import resolve

IDS = torch.arange(1, 24).view(1, -1)
BY_NAME = {family.name: family for family in FAMILIES}


def metadata(writer, config, family):
    """The architecture's keys as llama.cpp's converter writes them."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    layers = family.spec(config).layers
    if family.name == "gemma4":
        full, sliding = layers[-1], layers[0]
        writer.add_head_count_kv([layer.num_kv_heads for layer in layers])
        writer.add_key_length(full.head_dim)
        writer.add_key_length_swa(sliding.head_dim)
        writer.add_sliding_window(sliding.window)
        writer.add_sliding_window_pattern([layer.kind == "sliding" for layer in layers])
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_rope_freq_base(1e6)
        writer.add_float32("gemma4.rope.freq_base_swa", 1e4)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    if family.name == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base(1e6)
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)
    else:
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


@pytest.fixture
def write_gguf(tmp_path):
    def write(model, name, kind=GGMLQuantizationType.F32, extra=lambda writer: None):
        family, path = BY_NAME[name], tmp_path / "tiny.gguf"
        writer = GGUFWriter(path, family.gguf_architecture)
        metadata(writer, model.config, family)
        extra(writer)
        layers = range(model.config.num_hidden_layers)
        names = [*family.gguf_others, *(f"blk.{i}.{suffix}" for i in layers for suffix in family.gguf_blocks)]
        state = model.state_dict()
        tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
        for gguf_name in names:
            hf_name = family.gguf_name(gguf_name)
            if hf_name in state and hf_name not in tied:
                values = state[hf_name].numpy() + np.float32(family.alters_gguf(hf_name))
                matrix = values.ndim == 2 and values.shape[1] % 32 == 0
                writer.add_tensor(
                    gguf_name, quantize(values, kind) if matrix else values, raw_dtype=kind if matrix else None
                )
        if name == "gemma4":
            writer.add_tensor("rope_freqs.weight", np.ones(16, np.float32))
        for step in (
            writer.write_header_to_file,
            writer.write_kv_data_to_file,
            writer.write_tensors_to_file,
            writer.close,
        ):
            step()
        return path

    return write


@torch.inference_mode()
def logits(model):
    return model(IDS).logits


def load(path):
    source = resolve(str(path))
    model = build_on_meta(source)
    fill(model, source, device="cpu", dtype=torch.float32)
    return model, source


@pytest.mark.parametrize("name", ["gemma4", "gemma4-separate-values", "gemma3", "qwen3", "qwen3-tied-gqa3"])
def test_logits_survive_gguf(build_tiny_model, write_gguf, name):
    """Names, norms, layer kinds, K = V, scale and RoPE all come back from GGUF's spelling of them."""
    model = build_tiny_model(name)
    if name == "gemma3":  # GGUF has no key for the scale: llama.cpp takes head_dim, so must the twin
        for layer in model.model.layers:
            layer.self_attn.scaling = model.config.head_dim**-0.5
    loaded, source = load(write_gguf(model, name.split("-")[0]))
    assert source.kind == "gguf"
    torch.testing.assert_close(logits(loaded), logits(model), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_matrices(build_tiny_model, write_gguf, kind):
    """Against the same model with its matrices quantised and restored by the gguf package."""
    from gguf.quants import dequantize

    wide = dict(hidden_size=64, intermediate_size=96)
    model = build_tiny_model("qwen3")
    config = model.config.to_dict() | wide
    family = BY_NAME["qwen3"]
    torch.manual_seed(1)
    model = family.build(family.text_config(config)).eval()
    loaded, source = load(write_gguf(model, "qwen3", GGMLQuantizationType[kind]))
    assert set(source.bytes_by_format) == {"F32", kind}
    for name, slot in find_slots(model).items():
        expected = getattr(slot.module, slot.attribute).detach()
        if expected.dim() == 2:
            packed = quantize(expected.numpy(), GGMLQuantizationType[kind])
            expected = torch.from_numpy(dequantize(packed, GGMLQuantizationType[kind]).copy()).float()
        assert torch.equal(loaded.get_parameter(name), expected), name


def test_left_over_and_missing_tensors(build_tiny_model, write_gguf):
    model = build_tiny_model("qwen3")
    path = write_gguf(model, "qwen3", extra=lambda w: w.add_tensor("blk.0.attn_q.bias", np.zeros(160, np.float32)))
    with pytest.raises(
        LoadError, match=r"tiny.gguf: the tensors do not fit[\s\S]*not part of a qwen3 model: blk.0.attn_q.bias"
    ):
        load(path)


def test_end_of_text_tokens(build_tiny_model, write_gguf):
    """eos_token_id, eot_token_id and the family's control tokens end a text; a plain token of that name does not."""

    def vocabulary(writer):
        tokens = [f"t{i}" for i in range(97)]
        tokens[40], tokens[41], tokens[42] = "<end_of_turn>", "<eos>", "x"
        writer.add_tokenizer_model("llama")
        writer.add_token_list(tokens)
        writer.add_token_scores([0.0] * 97)
        writer.add_token_types([3 if i == 40 else 1 for i in range(97)])
        writer.add_eos_token_id(7)
        writer.add_eot_token_id(9)
        writer.add_bos_token_id(2)
        writer.add_float32("general.sampling.temp", 0.5)
        writer.add_int32("general.sampling.top_k", 64)

    source = resolve(str(write_gguf(build_tiny_model("gemma3"), "gemma3", extra=vocabulary)))
    assert source.generation_defaults == {
        "eos_token_id": [7, 9, 40],
        "bos_token_id": 2,
        "temperature": 0.5,
        "top_k": 64,
    }
    assert source.config.eos_token_id == [7, 9, 40]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.eos_token_id", 97, "eos_token_id = 97, expected a token id below 97"),
        ("tokenizer.ggml.bos_token_id", 1 << 31, "bos_token_id = 2147483648"),
    ],
)
def test_token_ids_beyond_the_embedding(build_tiny_model, write_gguf, key, value, message):
    path = write_gguf(build_tiny_model("qwen3"), "qwen3", extra=lambda w: w.add_uint32(key, value))
    with pytest.raises(LoadError, match=message):
        resolve(str(path))


def test_a_vocabulary_larger_than_the_embedding(build_tiny_model, write_gguf):
    path = write_gguf(build_tiny_model("qwen3"), "qwen3", extra=lambda w: w.add_token_list(["t"] * 98))
    with pytest.raises(LoadError, match=r"a vocabulary of 98 tokens, but token_embd.weight has 97 rows"):
        resolve(str(path))


def test_an_unknown_architecture(tmp_path):
    writer = GGUFWriter(tmp_path / "x.gguf", "gemma2")
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    with pytest.raises(
        LoadError, match=r"x.gguf: general.architecture 'gemma2' is not supported; the closest is 'gemma"
    ):
        resolve(str(tmp_path / "x.gguf"))


def test_dummy_weights_of_a_gguf(build_tiny_model, write_gguf):
    source = resolve(str(write_gguf(build_tiny_model("qwen3"), "qwen3")), load_format="dummy")
    assert source.kind == "dummy"
    assert source.stored == ()
    assert source.load_tokenizer() is None
