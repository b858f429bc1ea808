"""On a GPU: the fast path computes what Hugging Face computes, ran as intended, and allocates nothing.

`pytest -m gpu`; the models are small and random, with shapes that the kernels of the big ones take.
"""

from __future__ import annotations

import copy

import pytest
import torch
import triton

from models.cache import KVCaches
from models.families import family_for_model_type
from models.fused_model import fuse_layers
from models.lm import RoutedLM
from models.packing import pack_in_place, projection_packs
from models.swap import swap_attention
from runner.engine import Engine

pytestmark = pytest.mark.gpu

CTX, WINDOW, VOCAB = 512, 64, 1000
COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=320,
    intermediate_size=640,
    num_attention_heads=8,
    max_position_embeddings=CTX,
    eos_token_id=None,
    pad_token_id=0,
)
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
}
CONFIGS = {
    "gemma4": dict(
        num_key_value_heads=4,
        head_dim=64,
        global_head_dim=128,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        hidden_size_per_layer_input=0,
        sliding_window=WINDOW,
        final_logit_softcapping=30.0,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "gemma3": dict(
        num_key_value_heads=2,
        head_dim=128,
        query_pre_attn_scalar=128,
        sliding_window=WINDOW,
        rope_parameters=GEMMA3_ROPE,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "qwen3": dict(num_key_value_heads=2, head_dim=128, tie_word_embeddings=False),
}


@pytest.fixture(params=CONFIGS)
def model(request) -> torch.nn.Module:
    """A three-layer random model of each family, float32, on the GPU."""
    import transformers

    names = {"gemma4": "Gemma4TextConfig", "gemma3": "Gemma3TextConfig", "qwen3": "Qwen3Config"}
    config = getattr(transformers, names[request.param])(num_hidden_layers=3, **COMMON, **CONFIGS[request.param])
    torch.manual_seed(0)
    built = family_for_model_type(config.model_type).build(config).eval().requires_grad_(False).cuda()
    for name, parameter in built.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, 0.02 if "embed" in name else parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.2)
        if request.param == "gemma4" and ("q_norm" in name or "k_norm" in name):
            parameter.mul_(parameter.numel() ** -0.25)  # the attention scale is 1.0: the norms carry it
    return built


class RecordingSampler:
    """Greedy, and keeps every step's logits on the device, so that two runs can be compared bit for bit."""

    def __init__(self, steps: int):
        self.logits = torch.zeros(steps, VOCAB, device="cuda")

    def __call__(self, logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        self.logits.index_copy_(0, index, logits)
        return logits.argmax(dim=-1)


def in_bf16(model: torch.nn.Module) -> torch.nn.Module:
    """A copy with bf16 parameters whose buffers stay float32, as from_pretrained leaves them."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def make_engine(
    model: torch.nn.Module, *, graph: bool, fuse: str = "all", pdl: bool = False, chunk: int = 256
) -> Engine:
    model = in_bf16(model)
    family = family_for_model_type(model.config.model_type)
    spec = family.spec(model.config)
    caches = KVCaches(spec, CTX, device=torch.device("cuda"), dtype=torch.bfloat16)
    swap_attention(model, spec, caches, "routed", pdl=pdl)
    pack_in_place(model, projection_packs(model))
    fuse_layers(model, family, spec, pdl=pdl, fuse_attention=fuse == "all")
    return Engine(RoutedLM(model, caches), device=torch.device("cuda"), prefill_chunk=chunk, cuda_graph=graph)


def run(engine: Engine, sampler: RecordingSampler, prompt: list[int], count: int) -> list[int]:
    engine.prepare(sampler)
    first = int(engine.prefill(prompt).argmax())
    engine.begin_decode(first, count - 1)
    return [first, *engine.tokens()]


def prompt_ids(length: int, seed: int = 0) -> list[int]:
    return torch.randint(1, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


FUSED = pytest.mark.parametrize(("fuse", "pdl"), [("layer", True), ("all", False), ("all", True)])


@FUSED
def test_graph_replay_equals_eager_bit_for_bit(model, fuse, pdl):
    """300 tokens, far past the window of 64; every logit of every step."""
    prompt, count = prompt_ids(37), 300
    eager, graphed = RecordingSampler(CTX), RecordingSampler(CTX)
    expected = run(make_engine(model, graph=False, fuse=fuse), eager, prompt, count)
    engine = make_engine(model, graph=True, fuse=fuse, pdl=pdl)
    assert run(engine, graphed, prompt, count) == expected
    assert engine.replays == count - 1
    assert torch.equal(eager.logits, graphed.logits)
    assert torch.isfinite(graphed.logits).all()


def decode_logits(engine: Engine, ids: list[int]) -> torch.Tensor:
    """Logits after every id, each decoded as a single token, [len, vocab]."""
    engine.lm.reset()
    rows = []
    with torch.inference_mode():
        for position, token in enumerate(ids):
            at = torch.tensor([position], device="cuda")
            rows.append(engine.lm.decode(torch.tensor([[token]], device="cuda"), at)[0].clone())
    return torch.stack(rows)


@FUSED
def test_fused_decode_is_within_twice_bf16s_own_error(model, fuse, pdl):
    """The truth is Hugging Face in float32; the yardstick is Hugging Face in bfloat16."""
    ids = prompt_ids(2 * WINDOW + 9)
    with torch.inference_mode():
        truth = model(torch.tensor([ids], device="cuda")).logits[0].float()
        yardstick = in_bf16(model)(torch.tensor([ids], device="cuda")).logits[0].float()
    found = decode_logits(make_engine(model, graph=False, fuse=fuse, pdl=pdl), ids)
    own_error = (yardstick - truth).norm() / truth.norm()
    error = (found - truth).norm() / truth.norm()
    assert 1e-4 < own_error < 0.1
    assert error <= 2 * own_error, (float(error), float(own_error))


def test_prefill_then_decode_agrees_with_hugging_face(model):
    """Prefill in chunks on the GPU kernels, then one token: logits within twice bf16's own error."""
    ids = prompt_ids(3 * WINDOW + 5)
    with torch.inference_mode():
        truth = model(torch.tensor([ids], device="cuda")).logits[0].float()
        yardstick = in_bf16(model)(torch.tensor([ids], device="cuda")).logits[0].float()
    for chunk in (512, 50):
        found = make_engine(model, graph=False, chunk=chunk).teacher_forced(ids).cuda()
        assert (found - truth).norm() <= 2 * (yardstick - truth).norm()


def test_nothing_allocates_during_replay(model):
    engine, sampler = make_engine(model, graph=True), RecordingSampler(CTX)
    run(engine, sampler, prompt_ids(20), 8)
    engine.prefill(prompt_ids(20))
    engine.begin_decode(5, 64)
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    assert len(list(engine.tokens())) == 64
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def decode_kernels(engine: Engine) -> list[str]:
    """The kernel each layer's route names."""
    return [layer.hf.self_attn.routes.decode.kernel for layer in engine.lm.model.model.layers]


@pytest.mark.parametrize("fuse", ["layer", "all"])
def test_intended_kernels_ran(model, fuse):
    """The profiler's word, not ours: in a replayed step every matrix went through a matvec kernel, attention through
    the routed one, and nothing fell back to cuBLAS or torch's attention.
    """
    engine, sampler = make_engine(model, graph=True, fuse=fuse), RecordingSampler(CTX)
    run(engine, sampler, prompt_ids(300), 4)
    engine.prefill(prompt_ids(300))
    engine.begin_decode(5, 4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        list(engine.tokens())
    ran = {event.key: event.count for event in profile.key_averages()}
    layers, steps = model.config.num_hidden_layers, 4

    def count(part: str) -> int:
        return sum(number for name, number in ran.items() if part in name)

    # A layer's attention fuses where its route is split-K.
    fused = sum(layer.fuses_attention for layer in engine.lm.model.model.layers)
    assert fused == (0 if fuse == "layer" else sum(kind == "splitk" for kind in decode_kernels(engine)))
    assert fused or fuse == "layer"
    assert count("decode_attention_kernel") == fused * steps, ran
    assert count("qk_norm_rope") == (layers - fused) * steps, ran
    assert count("_matvec_kernel") == (4 * layers + 1) * steps, ran
    assert count("_sandwich_kernel") == 2 * layers * steps, ran
    assert count("splitk_kernel") + count("standard_kernel") == (layers - fused) * steps, ran
    assert not [name for name in ran if "gemm" in name or "gemv" in name or "fmha" in name or "cutlass" in name], ran


def test_a_prompt_of_a_new_length_compiles_nothing(model, monkeypatch):
    """What start-up compiled serves every prompt: shorter, longer than the window, of several chunks, odd or not."""
    engine, sampler = make_engine(model, graph=True), RecordingSampler(CTX)
    engine.prepare(sampler)
    compiled = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **known: compiled.append(known["repr"]))
    for length in (2, 16, 33, 64, 100, 255, 257, 272, 300, 496, CTX - 1):
        engine.prefill(prompt_ids(length))
    assert compiled == []


def test_failed_capture_falls_back_loudly(model, caplog):
    engine = make_engine(model, graph=True)

    def unsafe(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.tensor([int(logits.argmax())], device="cuda")  # a host sync: illegal during capture

    engine.prepare(unsafe)
    assert engine.graph_failure
    assert "decoding eagerly" in caplog.text
    engine.begin_decode(int(engine.prefill(prompt_ids(9)).argmax()), 5)
    assert len(list(engine.tokens())) == 5
    assert engine.replays == 0
    torch.randn(3, device="cuda")  # a failed capture must not leave the generator believing that it is captured
