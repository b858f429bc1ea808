"""The ladder: one model, one GPU, one process; every rung adds one idea, so every idea's gain is visible.

    python -m scripts.ladder --model gemma4-31b --out scripts/results/h200

Random weights at the true shape, random prompt ids, greedy, EOS ignored. A rung's rate is the mean of the middle runs;
slow rungs generate fewer tokens (said in the table), because a rate needs no more.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from kernels.ceilings import matmul_rate, read_bandwidth
from runner import Runner
from runner.config import RunConfig, SamplingConfig
from runner.timing import mean, stddev
from runner.work import decode_weights, mean_kv_bytes, prefill_flops
from scripts.provenance import write_result

DISCARD = 2  # runs dropped at each end of the sorted ten, as the origin's benchmark does


@dataclass(frozen=True)
class Rung:
    """One configuration, and at most how many tokens and runs are spent on its rate (None: all that were asked for)."""

    name: str
    options: dict[str, Any]
    most: tuple[int, int] | None = (64, 4)
    compiled: bool | None = None  # transformers' own generate, compiled or not; None: ours


SLOW = (24, 2)
OFF = dict(fuse="none", pdl=False)
RUNGS = (
    Rung("transformers generate, static cache, eager", dict(attention="hf", cuda_graph=False, **OFF), SLOW, False),
    Rung("transformers generate, torch.compile", dict(attention="hf", cuda_graph=False, **OFF), (64, 2), True),
    Rung("Hugging Face attention and cache, eager", dict(attention="hf", cuda_graph=False, **OFF), SLOW),
    Rung("routed attention, eager", dict(attention="routed", cuda_graph=False, **OFF), SLOW),
    Rung("+ CUDA graph, standard attention", dict(attention="standard", cuda_graph=True, **OFF)),
    Rung("+ routed attention (split-K)", dict(attention="routed", cuda_graph=True, **OFF)),
    Rung("+ fused layers", dict(attention="routed", cuda_graph=True, fuse="layer", pdl=False)),
    Rung("+ dependent launch", dict(attention="routed", cuda_graph=True, fuse="layer", pdl=True)),
    Rung("+ norms and RoPE inside split-K", dict(attention="routed", cuda_graph=True, fuse="all", pdl=True), None),
)


@dataclass
class Result:
    """What a rung measured. Rates in tokens/s, shares of the measured ceilings."""

    rung: str
    generated: int
    runs: int
    decode: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    kept_decode: float = 0.0
    kept_decode_sd: float = 0.0
    kept_prefill: float = 0.0
    mbu: float = 0.0
    mfu: float = 0.0
    replays: int = 0
    peak_gib: float = 0.0
    startup: dict[str, float] = field(default_factory=dict)
    routes: dict[str, str] = field(default_factory=dict)
    error: str | None = None


def middle(samples: list[float]) -> list[float]:
    """The samples without the DISCARD fastest and slowest, where enough are there."""
    ordered = sorted(samples)
    return ordered[DISCARD:-DISCARD] if len(ordered) > 2 * DISCARD else ordered


def measure(rung: Rung, args: argparse.Namespace, bandwidth: float, rate: float) -> Result:
    """Load the model as the rung says, run it, and take it down again."""
    tokens, runs = map(min, (args.new, args.runs), rung.most or (args.new, args.runs))
    config = RunConfig(model=args.model, load_format="dummy", ctx_size=args.prompt + args.new, **rung.options)
    torch.cuda.reset_peak_memory_stats()
    runner = Runner.from_config(config)
    vocab = runner.source.spec.vocab_size
    ids = torch.randint(5, vocab, (args.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    sampling = SamplingConfig(max_new_tokens=tokens, temperature=0, ignore_eos=True, seed=0)
    result = Result(rung.name, tokens, runs)
    warmups = 2 if rung.compiled else 1  # compilation, cuBLAS handles; a compiled generate may compile twice
    for index in range(warmups + runs):
        if rung.compiled is None:
            decode, prefill = by_us(runner, ids, sampling)
        else:
            decode, prefill = by_transformers(runner, ids, tokens, rung.compiled)
        if index >= warmups:
            result.decode.append(decode)
            result.prefill.append(prefill)
    result.kept_decode, result.kept_decode_sd = mean(middle(result.decode)), stddev(middle(result.decode))
    result.kept_prefill = mean(middle(result.prefill))
    spec = runner.source.spec
    step_bytes = decode_weights(spec) * 2 + mean_kv_bytes(spec, args.prompt + 1, tokens - 1, 2)
    result.mbu = step_bytes * result.kept_decode / bandwidth
    result.mfu = prefill_flops(spec, args.prompt) / args.prompt * result.kept_prefill / rate
    result.replays = runner.engine.replays
    result.peak_gib = torch.cuda.max_memory_allocated() / 2**30
    result.startup = dict(
        load_s=runner.load_stats.seconds, compile_s=runner.engine.warmup_s, capture_s=runner.engine.capture_s
    )
    result.routes = runner.swap_report.by_kind()
    if rung.options["cuda_graph"]:
        assert result.replays == tokens - 1, f"{rung.name}: {result.replays} replays for {tokens} tokens"
    return result


def by_us(runner: Runner, ids: list[int], sampling: SamplingConfig) -> tuple[float, float]:
    """Decode and prefill rate of one generation, as every run reports them."""
    stream = runner.stream_generation(ids, sampling)
    for _ in stream:
        pass
    assert stream.times.decode_rate
    assert stream.times.prefill_rate
    return stream.times.decode_rate, stream.times.prefill_rate


def by_transformers(runner: Runner, ids: list[int], tokens: int, compiled: bool) -> tuple[float, float]:
    """The same rates of transformers' own generate: decode from the difference of a long and a short generation."""
    prompt, seconds = torch.tensor([ids], device="cuda"), []
    model: Any = runner.engine.lm.model  # type: ignore[attr-defined]
    for count in (1, tokens):
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                prompt,
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
                cache_implementation="static",
                disable_compile=not compiled,
            )
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return (tokens - 1) / (seconds[1] - seconds[0]), len(ids) / seconds[0]


def free_device() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma4-31b")
    parser.add_argument("--prompt", type=int, default=2401)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument(
        "--rungs",
        default="0,2,3,4,5,6,7,8",
        help="which rungs, by number, in the order to run them; 1 compiles for minutes before its first token",
    )
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device("cuda")
    bandwidth, rate = read_bandwidth(device), matmul_rate(device)
    free_device()
    print(f"read {bandwidth / 1e9:.0f} GB/s, bf16 matmul {rate / 1e12:.0f} TFLOP/s", flush=True)
    body = dict(model=args.model, prompt=args.prompt, read_bandwidth=bandwidth, matmul_rate=rate)
    results: dict[int, dict[str, Any]] = {}
    for number in map(int, args.rungs.split(",")):
        rung = RUNGS[number]
        started = time.perf_counter()
        try:
            result = measure(rung, args, bandwidth, rate)
        except Exception as error:  # named in the file and by the exit code; the other rungs still count
            traceback.print_exc()
            result = Result(rung.name, 0, 0, error=f"{type(error).__name__}: {error}")
        results[number] = asdict(result)
        rungs = [results[done] for done in sorted(results)]  # in the ladder's order, whatever order they ran in
        write_result(args.out, f"ladder-{args.model}-{args.prompt}", {**body, "rungs": rungs})
        free_device()
        if result.error:
            continue
        print(
            f"{rung.name:42s} decode {result.kept_decode:8.2f} +- {result.kept_decode_sd:.2f} tok/s ({result.mbu:.1%} "
            f"MBU, {result.generated} tokens x {result.runs}), prefill {result.kept_prefill:8.0f} tok/s "
            f"({result.mfu:.1%} MFU), peak {result.peak_gib:.1f} GiB, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    if failed := [result["rung"] for result in results.values() if result["error"]]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
