"""Times and the statistics made of them. Seconds everywhere; milliseconds appear only where a report prints them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

Clock = Callable[[], float]


def mean(samples: Sequence[float]) -> float:
    """Arithmetic mean of at least one sample."""
    return math.fsum(samples) / len(samples)


def stddev(samples: Sequence[float]) -> float:
    """Standard deviation with n - 1, as llama-bench reports it; 0 for a single sample."""
    if len(samples) < 2:
        return 0.0
    centre = mean(samples)
    return math.sqrt(math.fsum((sample - centre) ** 2 for sample in samples) / (len(samples) - 1))


def percentile(samples: Sequence[float], percent: float) -> float:
    """Linear interpolation between the closest ranks (numpy's default) of at least one sample; percent in [0, 100]."""
    ordered = sorted(samples)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


class Stopwatch:
    """`with Stopwatch() as watch: ...`, then `watch.seconds`. Times the host: synchronise the device in the block."""

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self.seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self._started = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = self._clock() - self._started


@dataclass(frozen=True)
class StartupTimes:
    """What it cost to get ready for the first prompt, in seconds and in order. None: did not happen."""

    import_s: float | None = None
    resolve_s: float | None = None  # config, tokenizer, and the imports they need
    load_s: float | None = None
    compile_s: float | None = None
    capture_s: float | None = None


@dataclass(frozen=True)
class TokenTimes:
    """When things happened in one generation, on one clock: the start of the prefill and the arrival of every token."""

    prompt_tokens: int
    started: float
    arrivals: tuple[float, ...]

    @property
    def generated(self) -> int:
        return len(self.arrivals)

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: prefill, sampling, and the way to the host."""
        return self.arrivals[0] - self.started if self.arrivals else None

    @property
    def intervals(self) -> tuple[float, ...]:
        """Inter-token latencies; the first token belongs to prefill."""
        return tuple(later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False))

    @property
    def decode_s(self) -> float | None:
        """From the first token to the last."""
        return self.arrivals[-1] - self.arrivals[0] if self.generated > 1 else None

    @property
    def prefill_rate(self) -> float | None:
        """Prompt tokens per second of time to first token."""
        return _rate(self.prompt_tokens, self.ttft_s)

    @property
    def decode_rate(self) -> float | None:
        """(generated - 1) / (time of last - time of first token), tokens per second."""
        return _rate(self.generated - 1, self.decode_s)


def _rate(count: int, seconds: float | None) -> float | None:
    return count / seconds if seconds else None
