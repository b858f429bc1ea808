"""What a run was and how fast, as one record (card.py shows it to people).

Rates are never blended: prefill tok/s = prompt tokens / time to first token; decode tok/s = (generated - 1) / (time of
last - time of first token). MBU = bytes a decode step must read / its mean time / the measured read bandwidth.
MFU = operations the prefill must do / its time / the measured matmul rate.
"""

from __future__ import annotations

import dataclasses
import resource
import sys
from dataclasses import dataclass, field
from typing import Any

from models.spec import ModelSpec
from runner import work
from runner.timing import StartupTimes, TokenTimes, percentile


@dataclass(frozen=True)
class RunFacts:
    """What a loaded model knows about itself. Bytes, seconds, bytes per second, operations per second.

    `cuda_graph` is "on", or says why not. `routes` pairs a kind of layer with the kernel that serves it and why.
    `weight_bytes` is what decoding one token reads (0: all matrices of the spec in `itemsize`), `itemsize` that of
    weights and caches.
    """

    model: str
    spec: ModelSpec
    device: str
    dtype: str
    itemsize: int
    attention: str
    fuse: str
    pdl: bool
    cuda_graph: str
    routes: tuple[tuple[str, str], ...]
    ctx_size: int
    prefill_chunk: int
    dummy_weights: bool = False
    stored_bytes: int | None = None
    weight_bytes: int = 0
    read_bandwidth: float | None = None
    matmul_rate: float | None = None
    peak_memory: int | None = None
    startup: StartupTimes = field(default_factory=StartupTimes)


@dataclass(frozen=True)
class RunStats:
    """Everything a report says about one generation; names carry units. None: not measured, `missing` says why."""

    model: str
    family: str
    dummy_weights: bool
    device: str
    dtype: str
    attention: str
    fuse: str
    pdl: bool
    routes: dict[str, str]
    cuda_graph: str
    ctx_size: int
    prefill_chunk: int
    batch: int
    seed: int
    finish_reason: str | None
    prompt_tokens: int
    generated_tokens: int
    startup_s: float | None
    import_s: float | None
    resolve_s: float | None
    load_s: float | None
    load_gb_per_s: float | None
    compile_s: float | None
    capture_s: float | None
    ttft_ms: float | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    itl_p50_ms: float | None
    itl_p90_ms: float | None
    itl_p99_ms: float | None
    mbu: float | None
    mfu_prefill: float | None
    bytes_per_token: float | None
    peak_memory: int | None
    peak_host_memory: int
    decode_steps: int
    replayed_steps: int
    missing: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, ready for json.dumps."""
        return dataclasses.asdict(self)

    def of_process(self, import_s: float, resolve_s: float, ready_s: float) -> RunStats:
        """The same record knowing what only the process's entry can time: imports, finding the model, all until ready.

        Compiling and capturing happen after that, just before the first prefill, and are added.
        """
        startup_s = ready_s + (self.compile_s or 0.0) + (self.capture_s or 0.0)
        return dataclasses.replace(self, import_s=import_s, resolve_s=resolve_s, startup_s=startup_s)


def summarise(facts: RunFacts, times: TokenTimes, finish_reason: str | None, seed: int, replays: int) -> RunStats:
    """The record of one generation."""
    steps = max(times.generated - 1, 0)
    bytes_per_token = _bytes_per_token(facts, times, steps)
    missing: dict[str, str] = {}
    startup = facts.startup
    mbu = mfu = None
    if facts.read_bandwidth is None:
        missing["mbu"] = f"no measured read bandwidth for {facts.device}"
    elif bytes_per_token is None or times.decode_s is None:
        missing["mbu"] = "fewer than two tokens were generated"
    else:
        mbu = bytes_per_token * steps / times.decode_s / facts.read_bandwidth
    if facts.matmul_rate is None:
        missing["mfu_prefill"] = f"no measured matmul rate for {facts.device}"
    elif times.ttft_s:
        mfu = work.prefill_flops(facts.spec, times.prompt_tokens) / times.ttft_s / facts.matmul_rate
    else:
        missing["mfu_prefill"] = "no token was generated"
    load_rate = None
    if facts.dummy_weights:
        missing["load_gb_per_s"] = "dummy weights are made on the device, not loaded"
    elif facts.stored_bytes and startup.load_s:
        load_rate = facts.stored_bytes / 1e9 / startup.load_s
    peak = facts.peak_memory
    if peak is None:
        missing["peak_memory"] = f"not counted on {facts.device}"
    itl = {percent: _milli(percentile(times.intervals, percent) if steps else None) for percent in (50, 90, 99)}
    return RunStats(
        model=facts.model,
        family=facts.spec.family,
        dummy_weights=facts.dummy_weights,
        device=facts.device,
        dtype=facts.dtype,
        attention=facts.attention,
        fuse=facts.fuse,
        pdl=facts.pdl,
        routes=dict(facts.routes),
        cuda_graph=facts.cuda_graph,
        ctx_size=facts.ctx_size,
        prefill_chunk=facts.prefill_chunk,
        batch=1,
        seed=seed,
        finish_reason=finish_reason,
        prompt_tokens=times.prompt_tokens,
        generated_tokens=times.generated,
        startup_s=None,
        import_s=startup.import_s,
        resolve_s=startup.resolve_s,
        load_s=startup.load_s,
        load_gb_per_s=load_rate,
        compile_s=startup.compile_s,
        capture_s=startup.capture_s,
        ttft_ms=_milli(times.ttft_s),
        prefill_tokens_per_s=times.prefill_rate,
        decode_tokens_per_s=times.decode_rate,
        itl_p50_ms=itl[50],
        itl_p90_ms=itl[90],
        itl_p99_ms=itl[99],
        mbu=mbu,
        mfu_prefill=mfu,
        bytes_per_token=bytes_per_token,
        peak_memory=peak,
        peak_host_memory=peak_host_bytes(),
        decode_steps=steps,
        replayed_steps=replays,
        missing=missing,
    )


def peak_host_bytes() -> int:
    """Largest resident set of this process so far (getrusage counts KiB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _bytes_per_token(facts: RunFacts, times: TokenTimes, steps: int) -> float | None:
    if steps == 0:
        return None
    weights = facts.weight_bytes or work.decode_weights(facts.spec) * facts.itemsize
    # The first decode step attends over the prompt and the first generated token.
    return weights + work.mean_kv_bytes(facts.spec, times.prompt_tokens + 1, steps, facts.itemsize)


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
