"""The statistics of a run as people read them: plain aligned text, one screen."""

from __future__ import annotations

from collections.abc import Sequence

from runner.report import RunStats


def card(stats: RunStats) -> str:
    """One screen of aligned plain text, ending in a newline."""
    rows: list[tuple[str, str]] = []
    if stats.dummy_weights:
        rows.append(("weights", "DUMMY: random numbers at the true shape, for speed only; the tokens mean nothing"))
    rows += [
        ("model", f"{stats.model} ({stats.family}), {stats.dtype} on {stats.device}"),
        ("attention", f"{stats.attention}, fuse {stats.fuse}, dependent launch {'on' if stats.pdl else 'off'}"),
        *((f"  {kind}", route) for kind, route in stats.routes.items()),
        ("graph", f"{stats.cuda_graph}; replayed {stats.replayed_steps}/{stats.decode_steps} decode steps"),
        (
            "tokens",
            f"{stats.prompt_tokens} prompt + {stats.generated_tokens} generated, context {stats.ctx_size}, "
            f"batch {stats.batch}, finish: {stats.finish_reason}, seed {stats.seed}",
        ),
        ("start-up", _startup(stats)),
        ("prefill", _prefill(stats)),
        ("decode", _decode(stats)),
        ("MBU", _mbu(stats)),
        ("peak memory", _memory(stats)),
    ]
    return aligned(rows)


def aligned(rows: Sequence[tuple[str, str]]) -> str:
    """Names in one column, values in the next, a line each."""
    width = max(len(name) for name, _ in rows)
    return "".join(f"{name:<{width}}  {value}\n" for name, value in rows)


def _startup(stats: RunStats) -> str:
    parts = []
    for name, seconds in (
        ("import", stats.import_s),
        ("resolve", stats.resolve_s),
        ("load", stats.load_s),
        ("compile", stats.compile_s),
        ("capture", stats.capture_s),
    ):
        if seconds is not None:
            rate = f" ({stats.load_gb_per_s:.2f} GB/s)" if name == "load" and stats.load_gb_per_s else ""
            parts.append(f"{name} {seconds:.2f} s{rate}")
    total = [f"{stats.startup_s:.2f} s in all"] if stats.startup_s is not None else []
    return ", ".join(total + parts) or "not measured"


def _prefill(stats: RunStats) -> str:
    if stats.ttft_ms is None:
        return "no token was generated"
    mfu = f", MFU {stats.mfu_prefill:.1%}" if stats.mfu_prefill is not None else ""
    return f"{stats.prefill_tokens_per_s:.1f} tok/s, first token after {stats.ttft_ms:.1f} ms{mfu}"


def _decode(stats: RunStats) -> str:
    if stats.decode_tokens_per_s is None:
        return "no rate from fewer than two tokens"
    return (
        f"{stats.decode_tokens_per_s:.2f} tok/s; latency p50 {stats.itl_p50_ms:.1f} p90 {stats.itl_p90_ms:.1f} "
        f"p99 {stats.itl_p99_ms:.1f} ms"
    )


def _mbu(stats: RunStats) -> str:
    if stats.mbu is None or stats.bytes_per_token is None:
        return f"not computed: {stats.missing['mbu']}"
    return f"{stats.mbu:.1%} of the measured read bandwidth, {stats.bytes_per_token / 1e9:.2f} GB a token"


def _memory(stats: RunStats) -> str:
    device = f"{stats.peak_memory / 2**30:.2f} GiB on the device, " if stats.peak_memory is not None else ""
    return f"{device}{stats.peak_host_memory / 2**30:.2f} GiB of host memory"
