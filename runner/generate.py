"""One generation as an iterator of pieces: prefill, decode, the reasons to stop, and the clock.

It drives an engine and never touches the device itself, so that tests can run it against a scripted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from models.errors import RunnerError, UsageError
from runner.report import RunFacts, RunStats, summarise
from runner.sampling import Sampler
from runner.text import StopMatcher, StreamDecoder, ends_generation
from runner.text.prompt import check_ids
from runner.timing import Clock, TokenTimes

FinishReason = Literal["stop", "length", "cancelled", "error"]


class Engine(Protocol):
    """What a generation needs of the device side. Methods are called in the order in which they stand here."""

    @property
    def ctx_size(self) -> int:
        """Positions the caches hold: prompt and generated tokens together."""

    @property
    def replays(self) -> int:
        """Decode steps of this generation that were graph replays."""

    def prepare(self, sampler: Sampler) -> None:
        """Compile and capture the decode step around `sampler`, if that is still to do. Not timed."""

    def prefill(self, ids: list[int]) -> torch.Tensor:
        """Start a sequence; float32 logits [vocab] after its last position, ready on return."""

    def begin_decode(self, first_token: int, limit: int) -> None:
        """Get ready to decode up to `limit` tokens after `first_token`."""

    def tokens(self) -> Iterator[int]:
        """`limit` tokens, each as soon as the host has it. Raises RunnerError at a step whose logits hold NaN."""

    def stop(self) -> None:
        """Launch no further steps."""


@dataclass(frozen=True)
class Piece:
    """One generated token and the text that can be shown since the last one (often, but not always, its own)."""

    token_id: int
    text: str


class GenerationStream:
    """Iterate once for the pieces; afterwards `finish_reason`, `token_ids`, `text` and `stats` hold the whole.

    finish_reason is "stop" (EOS or stop string), "length" (max_new_tokens or the context's end), "cancelled" (`cancel`,
    or the iterator was closed) or "error" (an exception is on its way). `token_ids` include the EOS token; `text` holds
    neither it nor a stop string. Without a tokenizer (as with dummy weights) all text is empty.

    Raises UsageError, before the engine is touched, for a prompt that is empty, outside the vocabulary, or too long.
    `facts` is asked after the last token, when what start-up cost is known.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any | None,
        prompt_ids: Sequence[int],
        sampler: Sampler,
        eos_ids: Sequence[int],
        *,
        facts: Callable[[], RunFacts],
        clock: Clock = time.perf_counter,
    ) -> None:
        self.engine = engine
        self.sampler = sampler
        self.prompt_ids = check_ids(prompt_ids, sampler.vocab_size)
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.limit = self._room(engine.ctx_size)
        sampling = sampler.config
        stops = sampling.stop
        if stops and tokenizer is None:
            raise UsageError("--stop: there is no tokenizer, so there is no text to stop at")
        eos_ids = () if sampling.ignore_eos else eos_ids
        self._final_ids = frozenset(eos_ids) if tokenizer is None else ends_generation(tokenizer, eos_ids, stops)
        self._decoder = None if tokenizer is None else StreamDecoder(tokenizer, self.prompt_ids)
        self._matcher = StopMatcher(stops)
        self._facts = facts
        self._clock = clock
        self._cancelled = False
        self._iterated = False
        self._started = 0.0
        self._arrivals: list[float] = []
        self._replays = 0

    def cancel(self) -> None:
        """Finish the token under way, then end with finish_reason "cancelled". Safe from a signal handler."""
        self._cancelled = True

    @property
    def times(self) -> TokenTimes:
        """Start and arrivals so far."""
        return TokenTimes(len(self.prompt_ids), self._started, tuple(self._arrivals))

    @property
    def stats(self) -> RunStats:
        """Statistics of a finished (or cancelled) generation."""
        return summarise(self._facts(), self.times, self.finish_reason, self.sampler.config.seed, self._replays)

    def __iter__(self) -> Generator[Piece]:
        if self._iterated:
            raise RuntimeError("a GenerationStream can be iterated once")
        self._iterated = True
        try:
            for token in self._tokens():
                yield self._take(token)
                if self.finish_reason is not None:
                    return
            raise RunnerError(f"the engine ended after {len(self.token_ids)} tokens of {self.limit}")
        except GeneratorExit:
            self.finish_reason = self.finish_reason or "cancelled"
            raise
        finally:
            self.finish_reason = self.finish_reason or "error"
            self.engine.stop()
            self._replays = self.engine.replays

    def _tokens(self) -> Iterator[int]:
        self.engine.prepare(self.sampler)
        self.sampler.begin(self.prompt_ids)
        self._started = self._clock()
        logits = self.engine.prefill(self.prompt_ids)
        if bool(logits.isnan().any()):
            raise RunnerError("prefill (step 0): the logits hold NaN; try --check-tensors, or another --dtype")
        with torch.inference_mode():
            step = torch.zeros(1, dtype=torch.int64, device=logits.device)
            first = int(self.sampler(logits.unsqueeze(0), step))
        self._arrivals.append(self._clock())
        yield first
        # Not reached when the first token was the last: a stop is noticed before the next token is asked for.
        self.engine.begin_decode(first, self.limit - 1)
        for token in self.engine.tokens():
            self._arrivals.append(self._clock())
            yield token

    def _take(self, token: int) -> Piece:
        """Book a token, set finish_reason if it is the last, and say what text it lets out."""
        self.token_ids.append(token)
        ended = token in self._final_ids
        text = ""
        if self._decoder is not None and not ended:
            text = self._matcher.feed(self._decoder.push(token))
        if ended or self._matcher.matched is not None:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.limit:
            self.finish_reason = "length"
        elif self._cancelled:
            self.finish_reason = "cancelled"
        if self._decoder is not None and self.finish_reason is not None:
            text += self._matcher.feed(self._decoder.flush()) + self._matcher.flush()
        self.text += text
        return Piece(token, text)

    def _room(self, ctx_size: int) -> int:
        """Tokens that may be generated. The context holds prompt and answer together."""
        prompt = len(self.prompt_ids)
        if prompt >= ctx_size:
            raise UsageError(
                f"the prompt has {prompt} tokens and the context holds {ctx_size}, which must leave room to answer: "
                f"shorten the prompt or raise --ctx-size to {prompt + self.sampler.config.max_new_tokens}"
            )
        return min(self.sampler.config.max_new_tokens, ctx_size - prompt)
