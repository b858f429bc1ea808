"""Choosing the next token with device tensors alone, so that the choice can live inside a captured CUDA graph.

Order of the filters, as in transformers (`GenerationMixin._get_logits_processor`): repetition penalty, temperature,
top-k, top-p, min-p. (llama.cpp applies the temperature last; generation_config values are meant for this order.)
"""

from __future__ import annotations

import torch

from runner.config import SamplingConfig

# Below one by more than a rounding step, so that uniform * total never reaches the end of the distribution.
_LARGEST_UNIFORM = 1.0 - 2.0**-40


class Sampler:
    """`sampler(logits, step) -> token`: static shapes, no host synchronisation, no Python branch on tensor values.

    Randomness is one uniform number per step, drawn on the CPU from the seed before the first token: the token is the
    inverse of the cumulative distribution at that number. So eager and replayed steps, CPU and GPU give the same text
    for the same seed. The cumulative sum runs in float64: its order of addition differs between devices, and at that
    precision the difference decides a token once in about 1e13.

    `max_steps` uniforms are kept; a longer run with the same seed sees the same ones first.
    """

    def __init__(self, config: SamplingConfig, vocab_size: int, max_steps: int, device: torch.device | str) -> None:
        self.config = config
        self.vocab_size = vocab_size
        self.max_steps = max_steps
        self.uniforms = draw_uniforms(config.seed, max_steps).to(device)
        self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)

    def begin(self, prompt_ids: list[int]) -> None:
        """Start a sequence: forget every token seen, then mark those of the prompt for the repetition penalty."""
        if self.config.repetition_penalty != 1.0:
            self.seen.zero_()
            self.seen[torch.tensor(prompt_ids, dtype=torch.int64, device=self.seen.device)] = True

    def again(self, config: SamplingConfig) -> Sampler:
        """A sampler for another run: this one with a new seed, so that a graph captured around it goes on, if only
        what a capture does not freeze has changed; else a new one.
        """
        if _frozen(config) != _frozen(self.config):
            return Sampler(config, self.vocab_size, self.max_steps, self.seen.device)
        self.config = config
        self.uniforms.copy_(draw_uniforms(config.seed, self.max_steps))
        return self

    def __call__(self, logits: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """logits [1, vocab] float32 and step [1] int64 (0 is the first new token), on one device -> token [1] int64."""
        config = self.config
        if config.repetition_penalty != 1.0:
            logits = penalise(logits, self.seen, config.repetition_penalty)
        if config.temperature == 0:
            token = logits.argmax(dim=-1)
        else:
            probs, ids = candidates(logits / config.temperature, config.top_k, config.top_p, config.min_p)
            token = pick(probs, ids, self.uniforms.index_select(0, step))
        if config.repetition_penalty != 1.0:
            self.seen.index_fill_(0, token, True)
        return token


def draw_uniforms(seed: int, count: int) -> torch.Tensor:
    """[count] float64 in [0, 1) on the CPU; a larger count extends the same sequence."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, dtype=torch.float64, generator=generator).clamp_(max=_LARGEST_UNIFORM)


def penalise(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Divide positive, multiply negative logits of seen tokens by the penalty (CTRL, arXiv:1909.05858, section 4.1)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def candidates(
    logits: torch.Tensor, top_k: int, top_p: float, min_p: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Unnormalised probabilities [1, N] float64 after the filters, and their token ids [1, N] (None: the vocabulary).

    top-p keeps a token while those more likely than it sum to less than top_p; min-p keeps those at least min_p times
    as likely as the best. Both always keep the best. Among equal logits at the edge of top-k one is chosen, not all.
    """
    ids: torch.Tensor | None = None
    if 0 < top_k < logits.shape[-1]:
        logits, ids = torch.topk(logits, top_k, dim=-1)  # sorted, so top-p needs no sort of its own
    elif top_p < 1.0:
        logits, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    best = logits.amax(dim=-1, keepdim=True)
    weights = torch.exp((logits - best).double())
    if top_p < 1.0:
        above = weights.cumsum(dim=-1) - weights
        weights = torch.where(above < top_p * weights.sum(dim=-1, keepdim=True), weights, 0.0)
    if min_p > 0.0:
        weights = torch.where(weights >= min_p, weights, 0.0)  # the best weighs exactly 1
    return weights, ids


def pick(weights: torch.Tensor, ids: torch.Tensor | None, uniform: torch.Tensor) -> torch.Tensor:
    """Inverse of the cumulative distribution at `uniform` [1] -> token id [1] int64."""
    cumulative = weights.cumsum(dim=-1)
    rank = (cumulative <= uniform.unsqueeze(-1) * cumulative[..., -1:]).sum(dim=-1)
    # A row of NaN can weigh nothing and rank beyond the end: a device assert then would hide the engine's message.
    rank = rank.clamp(max=weights.shape[-1] - 1)
    return rank if ids is None else ids.gather(-1, rank.unsqueeze(-1)).squeeze(-1)


def _frozen(config: SamplingConfig) -> tuple[float, ...]:
    """What a graph captured around the sampler keeps for ever: the constants that shaped its operations."""
    if config.temperature == 0:
        return (0.0, config.repetition_penalty)
    return (config.temperature, config.repetition_penalty, config.top_k, config.top_p, config.min_p)
