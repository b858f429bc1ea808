"""A decode step captured once in a CUDA graph and replayed for every token."""

from __future__ import annotations

import time

import torch

from models.lm import RoutedLM
from runner.step import DecodeStep

WARMUP_STEPS = 2  # the first compiles kernels and creates handles, the second runs as the capture will


class GraphedStep:
    """The same call as DecodeStep, replayed. `replays` counts; `capture_s` and `warmup_s` say what the start cost.

    Warm-up writes into the caches, so it runs between a snapshot and a restore. Capture itself executes nothing.
    """

    def __init__(self, step: DecodeStep):
        lm = step.lm
        assert isinstance(lm, RoutedLM), "only a model over our own caches can be captured"
        self.step = step
        self.replays = 0
        started = time.perf_counter()
        saved = lm.caches.snapshot(count=min(WARMUP_STEPS, lm.ctx_size - lm.caches.length))
        self._warm_up(lm)
        lm.caches.restore(saved)
        torch.cuda.synchronize()
        self.warmup_s = time.perf_counter() - started

        started = time.perf_counter()
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph):
                step()
        except RuntimeError:
            _end_failed_capture()
            raise
        torch.cuda.synchronize()
        self.capture_s = time.perf_counter() - started

    def _warm_up(self, lm: RoutedLM) -> None:
        """Run the step on a side stream, as capture requires, never past the caches' end."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step.begin(token=0, position=lm.caches.length)
            for _ in range(min(WARMUP_STEPS, lm.ctx_size - lm.caches.length)):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)

    def begin(self, token: int, position: int) -> None:
        """See DecodeStep.begin."""
        self.step.begin(token, position)

    def __call__(self) -> None:
        self._graph.replay()
        self.replays += 1


def _end_failed_capture() -> None:
    """Give the device a fresh random generator: the old one goes on believing that it is being captured."""
    device = torch.cuda.current_device()
    fresh = torch.Generator(device=torch.device("cuda", device))
    torch.cuda.default_generators[device].graphsafe_set_state(fresh.graphsafe_get_state())
