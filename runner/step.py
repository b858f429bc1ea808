"""One decode step: a token in, the next token out, everything on the device.

The step owns the static buffers that a captured graph needs. Eager and graphed decoding run this same object, so that
`--no-cuda-graph` differs in launches only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels.clock import advance
from models.lm import CausalLM

NOT_A_TOKEN = -1  # emitted in place of a token when the logits hold NaN

Sampler = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class DecodeStep:
    """Calling it decodes one token: reads `token` and `position`, writes `emitted`, and advances all three itself.

    Buffers (int64, on the device): token [1, 1], position [1], index [1] (of the token being sampled, 0 is the one that
    prefill gave), emitted [1] (the new token, or NOT_A_TOKEN if the logits held NaN).
    """

    def __init__(self, lm: CausalLM, sampler: Sampler, device: torch.device):
        self.lm = lm
        self.sampler = sampler
        self.token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.index = torch.zeros(1, dtype=torch.int64, device=device)
        self.emitted = torch.zeros(1, dtype=torch.int64, device=device)

    def begin(self, token: int, position: int) -> None:
        """Start (or restart) decoding with `token`, which prefill gave, standing at `position`."""
        self.token.fill_(token)
        self.position.fill_(position)
        self.index.fill_(1)

    def __call__(self) -> None:
        logits = self.lm.decode(self.token, self.position)
        sampled = self.sampler(logits, self.index)
        # A maximum carries NaN through; what a sampler makes of NaN is arbitrary and must not look like a token.
        highest = logits.amax(dim=-1)
        advance(sampled, highest, self.token, self.position, self.index, self.emitted, not_a_token=NOT_A_TOKEN)
