"""The whole way through the Python API on small saved models: resolve, swap, fill, engine, generation."""

from __future__ import annotations

import json

import pytest
import torch

from models.errors import LoadError, RunnerError, UsageError
from runner import Runner
from runner.config import RunConfig
from runner.preflight import memory_needs

GENERATED = 24


@pytest.fixture
def saved(tiny, tmp_path):
    """(directory of a saved tiny model, the Hugging Face model itself)."""
    _, model = tiny
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    return tmp_path, model


def prompt(length: int) -> list[int]:
    return torch.randint(1, 97, (length,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.mark.parametrize("fuse", ["none", "layer", "all"])
def test_from_files_to_tokens(saved, fuse):
    """Packed and renamed parameters included: what was filled must be what Hugging Face saved."""
    path, model = saved
    ids = prompt(21)
    runner = Runner.from_pretrained(str(path), ctx_size=64, fuse=fuse, prefill_chunk=8)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(runner.logits(ids), expected, atol=1e-4, rtol=0)
    tokens = model.generate(torch.tensor([ids]), max_new_tokens=GENERATED, min_new_tokens=GENERATED, do_sample=False)
    found = runner.generate(ids, max_new_tokens=GENERATED, temperature=0, ignore_eos=True)
    assert found.token_ids == tokens[0, len(ids) :].tolist()
    assert found.finish_reason == "length"
    assert found.stats.generated_tokens == GENERATED
    assert found.stats.decode_steps == GENERATED - 1
    layers = model.config.num_hidden_layers
    assert [row.new for row in runner.swap_report.rows].count("RoutedAttention") == layers
    assert [row.new for row in runner.swap_report.rows].count("FusedDecoderLayer") == (0 if fuse == "none" else layers)


def test_every_attention_mode_says_the_same(saved):
    path, _ = saved
    ids = prompt(30)
    said = {
        mode: Runner.from_pretrained(str(path), ctx_size=64, attention=mode)
        .generate(ids, max_new_tokens=12, temperature=0, ignore_eos=True)
        .token_ids
        for mode in ("hf", "standard", "splitk", "routed")
    }
    assert len(set(map(tuple, said.values()))) == 1, said


def test_context_ends_the_generation(build_tiny_model, tmp_path):
    build_tiny_model("qwen3").save_pretrained(tmp_path)
    runner = Runner.from_pretrained(str(tmp_path), ctx_size=32)
    generation = runner.generate(prompt(20), max_new_tokens=100, temperature=0, ignore_eos=True)
    assert generation.finish_reason == "length"
    assert len(generation.token_ids) == 12
    with pytest.raises(UsageError, match=r"40 tokens and the context holds 32.*--ctx-size"):
        runner.generate(prompt(40))
    with pytest.raises(UsageError, match="expected 1 to ctx_size 32"):
        runner.logits(prompt(33))


def test_nan_weights_are_found_while_decoding(build_tiny_model, tmp_path):
    """With --check-tensors at load; without it at the first step, named."""
    model = build_tiny_model("qwen3")
    model.model.layers[1].mlp.down_proj.weight[3, 4] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"NaN or Inf in .*layers\.1\.mlp\.down_proj"):
        Runner.from_config(RunConfig(str(tmp_path), ctx_size=32, check_tensors=True))
    with pytest.raises(RunnerError, match=r"step 0.*NaN"):
        Runner.from_pretrained(str(tmp_path), ctx_size=32).generate(prompt(4), temperature=0)


def test_nan_that_appears_during_decode_names_the_step(build_tiny_model, tmp_path):
    build_tiny_model("qwen3").save_pretrained(tmp_path)
    runner = Runner.from_pretrained(str(tmp_path), ctx_size=32)
    stream = runner.stream(prompt(4), max_new_tokens=10, temperature=0, ignore_eos=True)
    pieces = iter(stream)
    for _ in range(3):
        next(pieces)
    runner.engine.lm.model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(RunnerError, match="decode step 3: the logits hold NaN"):
        next(pieces)
    assert stream.finish_reason == "error"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(cuda_graph=True), "--cuda-graph needs a CUDA device"),
        (dict(pdl=True), "--pdl needs"),
        (dict(attention="hf", fuse="layer"), "--fuse layer needs our attention"),
        (dict(ctx_size=100_000), "this model knows 512 positions"),
        (dict(device="cuda:0"), "sees no CUDA device"),
        (dict(device="warp"), "--device warp"),
        (dict(device="meta"), "expected cuda or cpu"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="these are refusals of a machine without a GPU")
def test_impossible_settings_are_refused(build_tiny_model, tmp_path, options, message):
    build_tiny_model("gemma4").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=message):
        Runner.from_pretrained(str(tmp_path), **options)


def test_a_model_that_cannot_fit_is_refused_with_its_table(monkeypatch):
    """Before a byte is allocated: 123 GB of float32 weights on this machine."""
    monkeypatch.setattr("runner.preflight.free_memory", lambda device: 10 << 30)
    with pytest.raises(RunnerError, match=r"weights 114\.\d+ GiB, KV, sliding layers .* Lower --ctx-size"):
        Runner.from_pretrained("gemma4-31b", load_format="dummy", device="cpu")


def test_preflight_counts_what_is_then_allocated(saved):
    path, _ = saved
    runner = Runner.from_pretrained(str(path), ctx_size=64)
    needs = memory_needs(runner.source, runner.settings)
    matrices = sum(p.nbytes for p in runner.engine.lm.model.parameters() if p.dim() == 2)
    assert needs["weights"] == matrices
    assert sum(size for name, size in needs.items() if name.startswith("KV")) == runner.engine.lm.caches.nbytes


def test_preparing_a_step_forgets_the_last_sequence(build_tiny_model, tmp_path):
    """A capture's warm-up starts where the caches stand: behind a full context there would be no room for it, the
    kernels would compile inside the capture, and it would fail. And a past failure must not outlive a new step.
    """
    build_tiny_model("qwen3").save_pretrained(tmp_path)
    runner = Runner.from_pretrained(str(tmp_path), ctx_size=32)
    runner.generate(prompt(4), max_new_tokens=2, temperature=0)
    runner.logits(prompt(32))
    assert runner.engine.lm.caches.length == 32
    runner.engine.graph_failure = "of an earlier step"
    runner.engine.prepare(lambda logits, index: logits.argmax(dim=-1))
    assert runner.engine.lm.caches.length == 0
    assert runner.engine.graph_failure is None


def test_a_seed_repeats_its_text(saved):
    path, _ = saved
    runner = Runner.from_pretrained(str(path), ctx_size=64)
    sampling = dict(max_new_tokens=20, temperature=1.0, top_p=0.9, ignore_eos=True)
    first = runner.generate(prompt(5), seed=7, **sampling)
    runner.generate(prompt(9), seed=8, **sampling)
    again = runner.generate(prompt(5), seed=7, **sampling)
    assert again.token_ids == first.token_ids
    assert json.dumps(again.stats.to_dict())
    assert again.stats.seed == 7
