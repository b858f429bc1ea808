"""fill: a filled model computes what the saved one computed, and a source that does not fit is refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import LoadError
from models.load.agree import summarise
from models.load.fill import build_on_meta, fill
from models.load.resolve import resolve

CPU = dict(device="cpu", dtype=torch.float32)
IDS = torch.arange(1, 24).view(1, -1)


@pytest.fixture
def saved(tmp_path):
    def save(model, rename=lambda name: name, extra=(), **config):
        """Save as one safetensors file, names changed; `config` edits config.json."""
        model.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        tensors = {rename(name): tensor for name, tensor in load_file(file).items()}
        save_file({**tensors, **dict(extra)}, file)
        fields = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**fields, **config}))
        return str(tmp_path)

    return save


@torch.inference_mode()
def logits(model):
    return model(IDS).logits


def load(path, **options):
    source = resolve(path)
    model = build_on_meta(source)
    return model, fill(model, source, **{**CPU, **options})


def test_logits_survive_the_round_trip(tiny, saved):
    _, model = tiny
    loaded, report = load(saved(model))
    assert torch.equal(logits(loaded), logits(model))
    assert not any(x.is_meta for x in [*loaded.parameters(), *loaded.buffers()])
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert report.bytes == sum(x.nbytes for x in model.state_dict(keep_vars=True).values()) - (
        model.lm_head.weight.nbytes if model.config.tie_word_embeddings else 0
    )
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == model.config.tie_word_embeddings


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
@pytest.mark.parametrize("name", ["gemma4", "gemma3"])
def test_multimodal_checkpoints_load_as_text(build_tiny_model, saved, name, prefix):
    """Gemma4/Gemma3ForConditionalGeneration, new and old names, with towers beside the text model."""
    model = build_tiny_model(name)
    towers = {"model.vision_tower.encoder.weight": torch.zeros(3), "multi_modal_projector.w": torch.zeros(2)}
    counters = {"model.audio_tower.layers.0.count": torch.tensor(3)}
    path = saved(model, lambda n: n.replace("model.", prefix, 1), {**towers, **counters})
    file = Path(path) / "config.json"
    config = json.loads(file.read_text())
    wrapper = {"model_type": name, "architectures": [f"G{name[1:]}ForConditionalGeneration"], "text_config": config}
    file.write_text(json.dumps(wrapper))
    loaded, _ = load(path)
    assert torch.equal(logits(loaded), logits(model))


def test_a_tied_head_that_is_stored_too(build_tiny_model, saved):
    model = build_tiny_model("gemma3")
    head = {"lm_head.weight": model.model.embed_tokens.weight.clone()}
    loaded, _ = load(saved(model, extra=head))
    assert torch.equal(logits(loaded), logits(model))
    head["lm_head.weight"][5, 5] += 1
    with pytest.raises(LoadError, match=r"embed_tokens.weight: differs from .*: lm_head.weight, to which"):
        load(saved(model, extra=head))


def test_all_that_does_not_fit_is_named_at_once(build_tiny_model, saved):
    model = build_tiny_model("gemma4")
    path = saved(model)
    file = f"{path}/model.safetensors"
    tensors = load_file(file)
    tensors.pop("model.layers.1.layer_scalar")
    for layer in (0, 1, 2, 4):
        tensors.pop(f"model.layers.{layer}.mlp.up_proj.weight")
    tensors["model.layers.0.self_attn.sinks"] = torch.zeros(4)
    tensors["model.norm.weight"] = torch.zeros(47)
    save_file(tensors, file)
    source = resolve(path)
    meta = build_on_meta(source)
    with pytest.raises(LoadError) as error:
        fill(meta, source, **CPU)
    message = str(error.value)
    assert message.startswith(path)
    assert "missing: " in message
    assert "model.layers.1.layer_scalar" in message
    assert "model.layers.{0-2,4}.mlp.up_proj.weight" in message
    assert "not part of a gemma4 model: model.layers.0.self_attn.sinks" in message
    assert "wrong shape: model.norm.weight is [47], expected [48]" in message
    assert all(parameter.is_meta for parameter in meta.parameters()), "nothing may be allocated before the names agree"


def test_two_stored_names_for_one_tensor(build_tiny_model, saved):
    model = build_tiny_model("gemma3")
    twin = {"model.language_model.norm.weight": torch.zeros(48)}
    with pytest.raises(LoadError, match=r"stored twice: model.norm.weight"):
        load(saved(model, extra=twin))


def test_names_are_summarised_without_loss():
    assert summarise(["a.weight"]) == "a.weight"
    assert summarise(["layers.3.x"]) == "layers.3.x"
    assert summarise([f"layers.{i}.x" for i in (2, 0, 1, 7)] + ["b"]) == "layers.{0-2,7}.x, b"


def test_packs_are_views_of_one_matrix(build_tiny_model, saved):
    model = build_tiny_model("qwen3")
    names = tuple(f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv")
    loaded, _ = load(
        saved(model), packs=[names, ("model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight")]
    )
    parts = [loaded.get_parameter(name) for name in names]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    whole = torch.cat([model.get_parameter(name) for name in names])
    q = parts[0]
    assert torch.equal(q.as_strided(whole.shape, (whole.shape[1], 1), q.storage_offset()), whole)
    assert torch.equal(logits(loaded), logits(model))


def test_wrapped_modules_are_found_through_rename(build_tiny_model, saved):
    model = build_tiny_model("qwen3")
    source = resolve(saved(model))
    loaded = build_on_meta(source)
    loaded.model.norm = torch.nn.Sequential(loaded.model.norm)
    fill(loaded, source, **CPU, rename=lambda name: name.replace("norm.0.", "norm."))
    assert torch.equal(logits(loaded), logits(model))


def test_target_dtype_and_buffers(build_tiny_model, saved):
    model = build_tiny_model("gemma4")
    loaded, _ = load(saved(model), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.model.layers[0].layer_scalar.dtype == torch.bfloat16
    assert loaded.model.rotary_emb.full_attention_inv_freq.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter.bfloat16())


def test_progress_counts_stored_bytes(build_tiny_model, saved):
    calls = []
    _, report = load(saved(build_tiny_model("qwen3")), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (report.bytes, report.bytes)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len({total for _, total in calls}) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_check_tensors_names_what_is_not_finite(build_tiny_model, saved, bad):
    model = build_tiny_model("qwen3")
    model.model.layers[1].mlp.up_proj.weight[3, 3] = bad
    path = saved(model)
    load(path)
    with pytest.raises(LoadError, match=r"NaN or Inf in model.layers.1.mlp.up_proj.weight$"):
        load(path, check_tensors=True)


@pytest.mark.parametrize("name", ["gemma4", "gemma3", "qwen3"])
def test_dummy_weights(build_tiny_model, saved, name):
    """Random matrices of the right spread, norms the identity, the same for the same seed."""
    path = saved(build_tiny_model(name))

    def make(seed):
        source = resolve(path, load_format="dummy")
        model = build_on_meta(source)
        report = fill(model, source, **CPU, seed=seed)
        assert report.bytes == 4 * report.parameters
        return model

    model, twin, other = make(1), make(1), make(2)
    norm = 0.0 if name == "gemma3" else 1.0
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, twin.get_parameter(key))
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.full_like(parameter, norm)), key
        else:
            assert not torch.equal(parameter, other.get_parameter(key))
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15)
    assert logits(model).isfinite().all()
    with pytest.raises(LoadError, match="dummy weights have no file"):
        next(resolve(path, load_format="dummy").tensors())
