"""What the user asked for, as plain data. Nothing here imports torch: the command line builds these before it."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from models.errors import UsageError

Attention = Literal["hf", "standard", "splitk", "routed"]
Fuse = Literal["none", "layer", "all"]
LoadFormat = Literal["auto", "dummy"]
Dtype = Literal["float32", "bfloat16", "float16"]

ATTENTION_MODES: tuple[str, ...] = get_args(Attention)
FUSE_MODES: tuple[str, ...] = get_args(Fuse)
LOAD_FORMATS: tuple[str, ...] = get_args(LoadFormat)
DTYPES: tuple[str, ...] = get_args(Dtype)

SEED_BITS = 32  # a printed seed should be short enough to type again


@dataclass(frozen=True)
class RunConfig:
    """How to load and run a model. None means: let the pipeline choose by device and prompt.

    `model` is a catalogue name, a local directory, a .gguf file or a hub id. Sizes count tokens.
    """

    model: str
    device: str | None = None
    dtype: Dtype | None = None
    attention: Attention = "routed"
    cuda_graph: bool | None = None
    fuse: Fuse | None = None
    pdl: bool | None = None
    ctx_size: int | None = None
    prefill_chunk: int | None = None
    load_format: LoadFormat = "auto"
    check_tensors: bool = False
    offline: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        _one_of("--attention", self.attention, ATTENTION_MODES)
        _one_of("--load-format", self.load_format, LOAD_FORMATS)
        if self.fuse is not None:
            _one_of("--fuse", self.fuse, FUSE_MODES)
        if self.dtype is not None:
            _one_of("--dtype", self.dtype, DTYPES)
        for flag, value in (("--ctx-size", self.ctx_size), ("--prefill-chunk", self.prefill_chunk)):
            if value is not None and value < 1:
                raise UsageError(f"{flag} {value}: expected at least 1 token")


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are chosen and when to stop. The defaults are neutral: exact greedy, nothing filtered.

    temperature 0 is exact greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 switch the filter off.
    The seed is drawn at random when not given, so that every run can print one that repeats it.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = field(default_factory=lambda: secrets.randbits(SEED_BITS))
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        checks = (
            ("--max-new-tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            ("--temperature", self.temperature, self.temperature >= 0, "0 (greedy) or more"),
            ("--top-k", self.top_k, self.top_k >= 0, "0 (off) or more"),
            ("--top-p", self.top_p, 0 < self.top_p <= 1, "more than 0, at most 1 (off)"),
            ("--min-p", self.min_p, 0 <= self.min_p <= 1, "between 0 (off) and 1"),
            ("--repetition-penalty", self.repetition_penalty, self.repetition_penalty > 0, "more than 0 (1 is off)"),
            ("--seed", self.seed, -(2**63) <= self.seed < 2**63, "a 64-bit integer"),
        )
        for flag, value, good, expected in checks:
            if not (good and math.isfinite(value)):
                raise UsageError(f"{flag} {value}: expected {expected}")
        if any(not text for text in self.stop):
            raise UsageError('--stop "": expected a string of at least one character')

    @classmethod
    def from_defaults(cls, generation_defaults: Mapping[str, Any], **overrides: Any) -> SamplingConfig:
        """The model's own generation_config, overridden by what the user gave (None counts as not given).

        As in transformers, filters and temperature of the model apply only when it says `do_sample: true`;
        a model that does not say so is greedy until a temperature is given. The penalty applies either way.
        """
        found = {key: value for key, value in generation_defaults.items() if value is not None}
        chosen: dict[str, Any] = {}
        if "repetition_penalty" in found:
            chosen["repetition_penalty"] = float(found["repetition_penalty"])
        if found.get("do_sample") or overrides.get("temperature"):
            chosen["temperature"] = float(found.get("temperature", 1.0)) if found.get("do_sample") else 0.0
            chosen |= {key: kind(found[key]) for key, kind in _FILTERS.items() if key in found}
        chosen |= {key: value for key, value in overrides.items() if value is not None}
        return cls(**chosen)


_FILTERS = {"top_k": int, "top_p": float, "min_p": float}


def _one_of(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{flag} {value}: expected one of {', '.join(choices)}")
