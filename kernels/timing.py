"""GPU time of small kernels, as a captured decode step sees it: CUDA-graph replay over inputs that the L2 forgot.

Plain timing of a launch of a few microseconds measures the host. Replaying one launch over one buffer measures the L2.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch

REPLAY_US = 1000.0  # in a shorter replay the launch of the graph counts, which no call of a decode step pays


def capture(calls: Sequence[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    """One graph of all `calls` in order; the first runs once before, so that nothing compiles or allocates late."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def graph_times(calls: Sequence[Callable[[], object]], *, runs: int = 10, warm_ms: float = 20.0) -> list[float]:
    """Microseconds a call, one figure a run: a replay's time over the number of calls in it.

    The calls run one after the other and do the same work on different inputs. For a cold L2 their inputs together must
    be several times its size (see sets_for_cold_l2). Few short calls take several turns in one graph.
    """
    graph = capture(calls)
    turns = turns_for(min(_times(graph.replay, 1, 3, 0.0)))
    if turns > 1:
        calls = list(calls) * turns
        graph = capture(calls)
    return _times(graph.replay, len(calls), runs, warm_ms)


def turns_for(replay_us: float) -> int:
    """How often to repeat what takes `replay_us` microseconds, so that it lasts REPLAY_US."""
    return max(1, math.ceil(REPLAY_US / replay_us))


def plain_times(calls: Sequence[Callable[[], object]], *, runs: int = 10, warm_ms: float = 20.0) -> list[float]:
    """As graph_times, but launched one by one by the host: what eager code pays."""

    def run() -> None:
        for call in calls:
            call()

    return _times(run, len(calls), runs, warm_ms)


def _times(run: Callable[[], object], calls: int, runs: int, warm_ms: float) -> list[float]:
    """Warm up for `warm_ms` (a GPU that has just idled answers up to 15 % late), then time each run on its own."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    while (time.perf_counter() - began) * 1e3 < warm_ms:
        run()
        torch.cuda.synchronize()
    marks = []
    for _ in range(runs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 / calls for start, end in marks]


def sets_for_cold_l2(bytes_a_call: int, device: torch.device, *, times: float = 2.0, most: int = 1024) -> int:
    """How many input sets to rotate so that each is evicted before its turn comes again (at least 2)."""
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, min(most, int(times * l2 / bytes_a_call) + 1))
