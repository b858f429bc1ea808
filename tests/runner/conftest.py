"""Fixtures of the runner's tests: a scripted engine, a byte-level tokenizer, and the facts of a run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from models.errors import RunnerError
from models.spec import AttentionSpec, ModelSpec
from runner.report import RunFacts

BOS, EOS, TURN = "<bos>", "<eos>", "<turn>"


def make_tokenizer(**options):
    """256 byte tokens (ids 0..255 in byte-level order) and three special ones; adds BOS by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([BOS, EOS, TURN])
    if options.pop("adds_bos", True):
        raw.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, raw.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=BOS, eos_token=EOS, **options)


@pytest.fixture
def build_tokenizer():
    """make_tokenizer itself: chat_template=..., adds_bos=False."""
    return make_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


class ScriptedEngine:
    """Plays the device: prefill's logits favour the first token of `script`, tokens() yields the others."""

    def __init__(self, script: list[int], *, vocab: int = 259, ctx_size: int = 4096, tick=lambda: None) -> None:
        self.script = script
        self.vocab = vocab
        self.ctx_size = ctx_size
        self.tick = tick
        self.replays = 0
        self.nan_at: int | None = None
        self.calls: list[str] = []
        self.limit: int | None = None
        self.yielded = 0

    def prepare(self, sampler) -> None:
        self.calls.append("prepare")
        sampler.seen.fill_(True)  # as a graph's warm-up does

    def prefill(self, ids: list[int]) -> torch.Tensor:
        self.calls.append("prefill")
        self.tick()
        logits = torch.zeros(self.vocab)
        logits[self.script[0]] = 20.0
        return logits * torch.nan if self.nan_at == 0 else logits

    def begin_decode(self, first_token: int, limit: int) -> None:
        self.calls.append("begin_decode")
        assert first_token == self.script[0]
        self.limit = limit

    def tokens(self) -> Iterator[int]:
        assert self.limit is not None
        for number, token in enumerate(self.script[1 : 1 + self.limit], start=1):
            self.tick()
            if number == self.nan_at:
                raise RunnerError(f"decode step {number}: the logits hold NaN")
            self.replays += 1
            self.yielded += 1
            yield token

    def stop(self) -> None:
        self.calls.append("stop")


@pytest.fixture
def scripted_engine():
    """The class ScriptedEngine."""
    return ScriptedEngine


def make_facts(**changes) -> RunFacts:
    full = AttentionSpec("full", 4, 2, 8, 0.5)
    sliding = AttentionSpec("sliding", 4, 2, 8, 0.5, window=16)
    known = dict(
        model="tiny",
        spec=ModelSpec("qwen3", (sliding, full), 32, 64, 259, 4096, True),
        device="cpu",
        dtype="float32",
        itemsize=4,
        attention="routed",
        fuse="none",
        pdl=False,
        cuda_graph="off (cpu)",
        routes=(("sliding", "1 x twin: no GPU"), ("full", "1 x twin: no GPU")),
        ctx_size=4096,
        prefill_chunk=512,
    )
    return RunFacts(**(known | changes))


@pytest.fixture
def build_facts():
    """make_facts itself: RunFacts of a two-layer model, with changes."""
    return make_facts
