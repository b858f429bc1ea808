"""Prefill and decode of one sequence: the part of the runner that touches the device.

Decoding is pipelined: the next step is launched before the host waits for the last one's token, so the device never
waits for the host, and the host sees each token as soon as it exists.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator

import torch

from models.errors import RunnerError
from models.lm import CausalLM
from runner.graph import GraphedStep
from runner.step import NOT_A_TOKEN, DecodeStep, Sampler

log = logging.getLogger(__name__)

IN_FLIGHT = {"cuda": 2, "cpu": 1}  # steps launched before the host reads a token; a CPU gains nothing from a second


class Engine:
    """One model, one sequence. `prepare` once per sampler, then `prefill`, `begin_decode`, `tokens`."""

    def __init__(self, lm: CausalLM, *, device: torch.device, prefill_chunk: int, cuda_graph: bool):
        self.lm = lm
        self.device = device
        self.ctx_size = lm.ctx_size
        self.prefill_chunk = prefill_chunk
        self.cuda_graph = cuda_graph
        self.graph_failure: str | None = None
        self.warmup_s = self.capture_s = 0.0
        self.position = 0
        self._step: DecodeStep | GraphedStep | None = None
        self._sampler: Sampler | None = None
        self._stopped = False
        self.steps_run = 0

    @property
    def replays(self) -> int:
        """Decode steps of the current generation that were graph replays."""
        return self._step.replays if isinstance(self._step, GraphedStep) else 0

    @torch.inference_mode()
    def prepare(self, sampler: Sampler) -> None:
        """Build the decode step around `sampler`, captured in a CUDA graph if asked for. Falls back loudly."""
        if sampler is self._sampler:
            return
        if self._sampler is None:
            self._warm_up_prefill()
        self._sampler = sampler
        # A sequence left by an earlier run may fill the caches; the warm-up before a capture needs room of its own.
        self.lm.reset()
        self.graph_failure = None
        step = self._step = DecodeStep(self.lm, sampler, self.device)
        if not self.cuda_graph:
            return
        if not self.lm.capturable:
            self.graph_failure = "Hugging Face's cache grows by allocation, so --attention hf cannot be captured"
            log.warning("no CUDA graph: %s; decoding eagerly", self.graph_failure)
            return
        try:
            graphed = GraphedStep(step)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.graph_failure = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            log.warning("CUDA graph capture failed (%s); decoding eagerly", self.graph_failure)
            return
        self._step, self.capture_s = graphed, graphed.capture_s
        self.warmup_s += graphed.warmup_s

    def _warm_up_prefill(self) -> None:
        """Prefill one full chunk of nothing, so that compiling kernels and opening cuBLAS count as start-up.

        The logits are checked as a generation checks them: the first isnan of a process takes 25 ms to be loaded.
        """
        if self.device.type != "cuda":
            return
        started = time.perf_counter()
        self.prefill([0] * min(self.prefill_chunk, self.ctx_size)).isnan().any()
        self.lm.reset()
        self.warmup_s += time.perf_counter() - started

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> torch.Tensor:
        """Start a new sequence with `ids`; float32 logits [vocab] of its last position, ready on return."""
        self.lm.reset()
        self.position = 0
        logits = torch.empty(0)
        for chunk in self._chunks(ids):
            logits = self.lm.prefill(chunk, keep=1)
        self.position = len(ids)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return logits[0]

    @torch.inference_mode()
    def teacher_forced(self, ids: list[int]) -> torch.Tensor:
        """Logits after every position of `ids`, float32 [len, vocab] on the CPU."""
        self.lm.reset()
        return torch.cat([self.lm.prefill(chunk, keep=0).cpu() for chunk in self._chunks(ids)])

    def _chunks(self, ids: list[int]) -> Iterator[torch.Tensor]:
        tensor = torch.tensor(ids, dtype=torch.int64, device=self.device).unsqueeze(0)
        yield from tensor.split(self.prefill_chunk, dim=1)

    def begin_decode(self, first_token: int, limit: int) -> None:
        """Get ready to decode up to `limit` tokens after `first_token`, which prefill's logits gave."""
        assert self._step is not None, "prepare() comes first"
        self._limit = min(limit, self.ctx_size - self.position)
        self._stopped = False
        self.steps_run = 0
        if isinstance(self._step, GraphedStep):
            self._step.replays = 0
        with torch.inference_mode():
            self._step.begin(first_token, self.position)

    def stop(self) -> None:
        """Launch no further steps; those in flight are dropped."""
        self._stopped = True

    def tokens(self) -> Iterator[int]:
        """Yield the decoded tokens in order, each as soon as it exists. RunnerError at a step with NaN logits."""
        launched: deque[_Emitted] = deque()
        yielded = 0
        depth = IN_FLIGHT[self.device.type]
        pipe = [_Emitted(self.device) for _ in range(depth)]
        while not self._stopped and yielded < self._limit:
            while len(launched) < depth and yielded + len(launched) < self._limit:
                launched.append(self._launch(pipe[self.steps_run % depth]))
            token = launched.popleft().wait()
            yielded += 1
            self.position += 1
            if token == NOT_A_TOKEN:
                raise RunnerError(f"decode step {yielded}: the logits hold NaN; the weights or a kernel are broken")
            yield token
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @torch.inference_mode()
    def _launch(self, slot: _Emitted) -> _Emitted:
        assert self._step is not None
        self._step()
        self.steps_run += 1
        step = self._step.step if isinstance(self._step, GraphedStep) else self._step
        return slot.fetch(step.emitted)


class _Emitted:
    """One token on its way to the host: a pinned buffer and the event that says it arrived."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._host = torch.zeros(1, dtype=torch.int64, pin_memory=self._cuda)
        self._arrived = torch.cuda.Event() if self._cuda else None

    def fetch(self, emitted: torch.Tensor) -> _Emitted:
        self._host.copy_(emitted, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()
        return self

    def wait(self) -> int:
        if self._arrived is not None:
            self._arrived.synchronize()
        return int(self._host)
