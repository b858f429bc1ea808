"""The two ways to run a causal language model here, behind one call: over our caches, or over Hugging Face's.

Both take token ids and give logits; neither repeats the model's forward, which stays Hugging Face's.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from models.cache import KVCaches


class CausalLM(Protocol):
    """What the engine needs of a model. One sequence, B = 1."""

    ctx_size: int
    capturable: bool

    def reset(self) -> None:
        """Forget the sequence."""
        ...

    def prefill(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        """Append ids [1, T] to the sequence; logits of the last `keep` positions (0: all), [keep, vocab] float32."""
        ...

    def decode(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Logits [1, vocab] float32 after `token` [1, 1] at `position` [1], both int64 on the device."""
        ...


class RoutedLM:
    """A Hugging Face model whose attention modules write to our caches; its decode step can be captured in a graph."""

    capturable = True

    def __init__(self, model: nn.Module, caches: KVCaches):
        self.model = model
        self.caches = caches
        self.ctx_size = caches.ctx_size
        # A dict of None per layer type makes Hugging Face build no masks at all: ours are in the kernels.
        self._no_masks = {"full_attention": None, "sliding_attention": None}

    def reset(self) -> None:
        self.caches.reset()

    def prefill(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        start, count = self.caches.length, ids.shape[1]
        positions = torch.arange(start, start + count, device=ids.device)
        self.caches.begin_decode(positions[:1])
        logits = self._forward(ids, positions, keep)
        self.caches.length += count
        return logits

    def decode(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        self.caches.begin_decode(position)
        return self._forward(token, position, keep=1)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, keep: int) -> torch.Tensor:
        output = self.model(
            input_ids=ids,
            position_ids=positions.unsqueeze(0),
            attention_mask=self._no_masks,
            use_cache=False,
            logits_to_keep=keep,
        )
        return output.logits[0].float()


class HuggingFaceLM:
    """The untouched Hugging Face model over its own DynamicCache: the baseline of `--attention hf`.

    It cannot be captured: its cache grows by allocation and branches on the host.
    """

    capturable = False

    def __init__(self, model: Any, ctx_size: int):
        self.model = model
        self.ctx_size = ctx_size
        self.reset()

    def reset(self) -> None:
        from transformers import DynamicCache

        self._cache = DynamicCache(config=self.model.config)
        self._length = 0

    def prefill(self, ids: torch.Tensor, keep: int) -> torch.Tensor:
        positions = torch.arange(self._length, self._length + ids.shape[1], device=ids.device)
        self._length += ids.shape[1]
        return self._forward(ids, positions, keep)

    def decode(self, token: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        return self._forward(token, position, keep=1)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, keep: int) -> torch.Tensor:
        output = self.model(
            input_ids=ids,
            position_ids=positions.unsqueeze(0),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        return output.logits[0].float()
