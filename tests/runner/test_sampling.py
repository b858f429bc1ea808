"""The sampler against transformers' logits processors, and what makes it safe inside a captured graph."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from models.errors import UsageError
from runner.config import SamplingConfig
from runner.sampling import Sampler, candidates, draw_uniforms, penalise, pick

VOCAB = 997
FILTERS = [
    dict(temperature=1.0),
    dict(temperature=0.3),
    dict(temperature=1.7, top_k=1),
    dict(temperature=0.8, top_k=40),
    dict(temperature=1.0, top_k=5 * VOCAB),
    dict(temperature=1.0, top_p=0.9),
    dict(temperature=1.3, top_p=0.05),
    dict(temperature=1.0, min_p=0.02),
    dict(temperature=1.0, top_k=64, top_p=0.95),
    dict(temperature=0.7, top_k=64, top_p=0.8, min_p=0.1),
    dict(temperature=1.5, top_p=0.97, min_p=0.01, repetition_penalty=1.3),
]


def hf_distribution(logits: torch.Tensor, prompt: list[int], c: SamplingConfig) -> torch.Tensor:
    """Probabilities [vocab] after transformers' own processors, in transformers' order."""
    chain = LogitsProcessorList()
    if c.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(c.repetition_penalty))
    chain.append(TemperatureLogitsWarper(c.temperature))
    if c.top_k:
        chain.append(TopKLogitsWarper(c.top_k))
    if c.top_p < 1:
        chain.append(TopPLogitsWarper(c.top_p))
    if c.min_p:
        chain.append(MinPLogitsWarper(c.min_p))
    return chain(torch.tensor([prompt]), logits.clone()).double().softmax(-1)[0]


def our_distribution(logits: torch.Tensor, prompt: list[int], c: SamplingConfig) -> torch.Tensor:
    seen = torch.zeros(VOCAB, dtype=torch.bool)
    seen[torch.tensor(prompt)] = True
    logits = penalise(logits, seen, c.repetition_penalty)
    weights, ids = candidates(logits / c.temperature, c.top_k, c.top_p, c.min_p)
    whole = torch.zeros(1, VOCAB, dtype=torch.float64)
    whole.scatter_(-1, torch.arange(VOCAB)[None] if ids is None else ids, weights)
    return (whole / whole.sum())[0]


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("scale", [0.1, 3.0, 1e4])
def test_distribution_is_that_of_transformers(filters, scale):
    config = SamplingConfig(**filters)
    for seed in range(3):
        logits = scale * torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed))
        prompt = [1, 5, 5, int(logits.argmax())]
        expected = hf_distribution(logits, prompt, config)
        actual = our_distribution(logits, prompt, config)
        assert torch.equal(actual > 0, expected > 0)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)


def test_pick_inverts_the_cumulative_distribution():
    """Each token owns an interval of [0, 1) as wide as its probability; a filtered token owns nothing."""
    weights = torch.tensor([[2.0, 0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    edges = {0.0: 0, 0.49999: 0, 0.5: 2, 0.74999: 2, 0.75: 3, float(draw_uniforms(0, 1).new_tensor(1 - 2**-40)): 3}
    for uniform, token in edges.items():
        assert int(pick(weights, None, torch.tensor([uniform], dtype=torch.float64))) == token
    ids = torch.tensor([[9, 8, 7, 6, 5]])
    assert int(pick(weights, ids, torch.tensor([0.6], dtype=torch.float64))) == 7


@pytest.mark.parametrize("filters", [dict(), dict(top_k=8), dict(top_p=0.9), dict(min_p=0.1)], ids=str)
def test_frequencies_follow_the_distribution(filters):
    """Chi-square over many steps: what is sampled, not only what is filtered, follows the softmax."""
    steps = 4000
    logits = torch.randn(1, 20, generator=torch.Generator().manual_seed(3))
    config = SamplingConfig(temperature=1.0, seed=7, **filters)
    sampler = Sampler(config, 20, steps, "cpu")
    counts = torch.zeros(20, dtype=torch.float64)
    for step in range(steps):
        counts[int(sampler(logits, torch.tensor([step])))] += 1
    weights, ids = candidates(logits, config.top_k, config.top_p, config.min_p)
    expected = torch.zeros(20, dtype=torch.float64)
    expected[torch.arange(20) if ids is None else ids[0]] = weights[0] / weights.sum() * steps
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi_square < 50  # 19 degrees of freedom: p < 1e-4


def test_temperature_zero_is_argmax_whatever_the_filters():
    logits = torch.randn(1, VOCAB)
    sampler = Sampler(SamplingConfig(temperature=0, top_k=3, top_p=0.5), VOCAB, 4, "cpu")
    assert sampler(logits, torch.tensor([0])).tolist() == [int(logits.argmax())]
    assert sampler(logits, torch.tensor([3])).dtype == torch.int64


def test_same_seed_same_tokens_another_seed_others():
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0))

    def run(seed: int, capacity: int) -> list[int]:
        sampler = Sampler(SamplingConfig(temperature=1.0, seed=seed), VOCAB, capacity, "cpu")
        return [int(sampler(logits, torch.tensor([step]))) for step in range(32)]

    assert run(5, 32) == run(5, 32)
    assert run(5, 32) == run(5, 4097), "a larger context must not change the text of a seed"
    assert run(5, 32) != run(6, 32)


def test_repetition_penalty_sees_prompt_and_own_tokens():
    """Token 0 leads, is in the prompt and is penalised; then 1 leads, is sampled and penalised in turn."""
    logits = torch.tensor([[3.0, 2.9, 2.8, -1.0]])
    sampler = Sampler(SamplingConfig(repetition_penalty=1.5), 4, 8, "cpu")
    sampler.begin([0])
    assert [int(sampler(logits, torch.tensor([step]))) for step in range(3)] == [1, 2, 0]
    sampler.begin([0])
    assert int(sampler(logits, torch.tensor([0]))) == 1, "begin() forgets the last sequence"


def test_again_keeps_the_captured_tensors_and_takes_the_new_seed():
    first = Sampler(SamplingConfig(temperature=0.9, seed=1), VOCAB, 16, "cpu")
    address = first.uniforms.data_ptr()
    again = first.again(SamplingConfig(temperature=0.9, seed=2, max_new_tokens=3))
    assert again is first
    assert first.uniforms.data_ptr() == address
    assert torch.equal(first.uniforms, draw_uniforms(2, 16))
    assert first.config.max_new_tokens == 3
    assert first.again(SamplingConfig(temperature=0.8)) is not first


def test_nan_logits_give_a_token_of_the_vocabulary():
    """No device assert may come of NaN: the engine reports the step, the sampler only must not die."""
    logits = torch.full((1, VOCAB), float("nan"))
    for filters in FILTERS:
        token = int(Sampler(SamplingConfig(**filters), VOCAB, 1, "cpu")(logits, torch.tensor([0])))
        assert 0 <= token < VOCAB


def test_defaults_come_from_the_model_and_flags_win():
    model = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [1], "max_length": 9}
    config = SamplingConfig.from_defaults(model, top_k=5, min_p=None)
    assert (config.temperature, config.top_k, config.top_p, config.min_p) == (0.6, 5, 0.95, 0.0)
    assert SamplingConfig.from_defaults(model, temperature=0.0).temperature == 0
    greedy = SamplingConfig.from_defaults({"temperature": 0.6, "top_k": 20})
    assert (greedy.temperature, greedy.top_k) == (0.0, 0)
    assert SamplingConfig.from_defaults({"top_k": 20}, temperature=0.5).top_k == 20
    assert SamplingConfig.from_defaults({"do_sample": True}).temperature == 1.0
    assert SamplingConfig().seed != SamplingConfig().seed


@pytest.mark.parametrize(
    "wrong",
    [
        dict(temperature=-0.1),
        dict(temperature=float("nan")),
        dict(temperature=float("inf")),
        dict(top_k=-1),
        dict(top_p=0.0),
        dict(top_p=1.1),
        dict(min_p=1.5),
        dict(repetition_penalty=0.0),
        dict(max_new_tokens=0),
        dict(seed=2**63),
        dict(stop=("",)),
    ],
    ids=str,
)
def test_values_out_of_range_name_the_flag(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match="--" + name.replace("_", "-")):
        dataclasses.replace(SamplingConfig(), **wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("filters", [dict(), *FILTERS], ids=str)
def test_graph_replay_draws_what_the_cpu_draws(filters):
    """Captured once, replayed for every step: no host synchronisation, and the same tokens as on the CPU."""
    steps, vocab = 24, 262_144
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(1)) * 3
    config = SamplingConfig(seed=11, **filters)
    on_cpu = Sampler(config, vocab, steps, "cpu")
    on_gpu = Sampler(config, vocab, steps, "cuda")
    on_cpu.begin([3, 4])
    static_logits, step = logits.cuda(), torch.zeros(1, dtype=torch.int64, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        on_gpu(static_logits, step)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        token = on_gpu(static_logits, step)
        step.add_(1)
    step.zero_()
    on_gpu.begin([3, 4])
    for number in range(steps):
        graph.replay()
        assert int(token) == int(on_cpu(logits, torch.tensor([number])))
