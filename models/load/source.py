"""A resolved source: everything known about a model before a byte of its weights is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from models.errors import LoadError
from models.family import Family
from models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

READ_GRAIN = 256
"""Reads start at a multiple of this many values (the largest GGUF block) and end at one or at the tensor's end."""


class ReadInto(Protocol):
    """Write values [start, start + out.numel()) of one tensor into `out`, a 1-D CPU tensor, converting to its dtype."""

    def __call__(self, out: torch.Tensor, start: int) -> None: ...


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a source. `name` is the Hugging Face state_dict's; shape is torch's, rows first."""

    name: str
    shape: tuple[int, ...]
    format: str
    """As the file calls it: F32, BF16, Q4_K ..."""
    nbytes: int
    where: str
    """File and stored name, for messages."""
    read_into: ReadInto
    natural: str
    """The torch dtype that holds the stored values without loss, by name."""

    @property
    def numel(self) -> int:
        count = 1
        for dim in self.shape:
            count *= dim
        return count

    def read(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The whole tensor on the CPU, in its natural dtype unless another is asked for."""
        import torch

        out = torch.empty(self.shape, dtype=dtype or getattr(torch, self.natural))
        self.read_into(out.view(-1), 0)
        return out


@dataclass(frozen=True)
class Source:
    """A model that can be built and filled. Made by models.load.resolve.resolve."""

    name: str
    kind: Literal["safetensors", "gguf", "dummy"]
    path: Path | None
    family: Family
    config: PretrainedConfig
    spec: ModelSpec
    stored: tuple[StoredTensor, ...] = ()
    generation_defaults: dict[str, Any] = field(default_factory=dict)
    """eos_token_id (list), bos_token_id, temperature, top_k, top_p, min_p, repetition_penalty: as far as stated."""
    tokenizer_loader: Callable[[], PreTrainedTokenizerBase | None] = lambda: None

    @property
    def stored_bytes(self) -> int:
        """Bytes of all weights as stored."""
        return sum(tensor.nbytes for tensor in self.stored)

    @property
    def bytes_by_format(self) -> dict[str, int]:
        """Stored bytes of each number format, largest first."""
        totals: dict[str, int] = {}
        for tensor in self.stored:
            totals[tensor.format] = totals.get(tensor.format, 0) + tensor.nbytes
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(state_dict name, CPU tensor in its natural dtype), one at a time."""
        if self.kind == "dummy":
            raise LoadError(
                f"{self.name}: dummy weights have no file to read; models.load.fill makes them on the device"
            )
        for tensor in self.stored:
            yield tensor.name, tensor.read()

    def load_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The source's tokenizer with its chat template, if it has one; None where there is no tokenizer."""
        return self.tokenizer_loader()
