"""Where a decode step's time goes, against what its bytes cost: the map for the next optimisation.

    python -m scripts.roofline --model gemma4-31b --context 2401 [--out scripts/results/h200]

Bytes are counted from the spec. Times come from the profiler's record of graph replays: a kernel is charged from the
end of the kernel before it to its own end, so that the parts add up to the step even where launches overlap.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path

import torch

from kernels.ceilings import read_bandwidth
from models.spec import ModelSpec
from runner import Runner
from runner.config import RunConfig, SamplingConfig
from scripts.provenance import write_result

STEPS = 12
ATTENTION = ("decode_attention_kernel", "splitk_kernel", "combine_kernel", "standard_kernel")
MATVECS = ("qkv", "o", "gate_up", "down")


def part_bytes(spec: ModelSpec, context: int, itemsize: int = 2) -> dict[str, int]:
    """Bytes that one decode step at `context` positions must read, by part."""
    hidden = spec.hidden_size
    kinds = dict.fromkeys(f"attention, {layer.kind}" for layer in spec.layers)
    found = dict.fromkeys((*MATVECS, *kinds, "lm_head", "small"), 0)
    for layer in spec.layers:
        kv = layer.num_kv_heads * layer.head_dim * (1 if layer.value_is_key else 2)
        found["qkv"] += (layer.num_heads * layer.head_dim + kv) * hidden * itemsize
        found["o"] += layer.num_heads * layer.head_dim * hidden * itemsize
        found["gate_up"] += 2 * spec.intermediate_size * hidden * itemsize
        found["down"] += spec.intermediate_size * hidden * itemsize
        found[f"attention, {layer.kind}"] += layer.kv_capacity(context) * layer.kv_row_bytes(itemsize)
    found["lm_head"] = spec.vocab_size * hidden * itemsize
    return found


def name_parts(kernels: list[str], kinds: list[str]) -> list[str]:
    """The part of each kernel of one step, in order of execution. Fused layers run four matvecs each, then the head.

    kinds: the kind of every layer's attention, in order.
    """
    matvecs, parts = 0, []
    for name in kernels:
        layer, place = divmod(matvecs, 4)
        if "_matvec_kernel" in name:
            parts.append(MATVECS[place] if layer < len(kinds) else "lm_head")
            matvecs += 1
        elif any(kernel in name for kernel in ATTENTION):
            parts.append(f"attention, {kinds[layer]}")
        else:
            parts.append("small")
    if matvecs != 4 * len(kinds) + 1:
        raise RuntimeError(
            f"{matvecs} matvecs in a step of {len(kinds)} layers, expected {4 * len(kinds) + 1}: not fused?"
        )
    return parts


def profile_steps(runner: Runner, context: int) -> list[list[tuple[str, float, float]]]:
    """(name, start, end) in us of every kernel of STEPS replayed steps."""
    ids = torch.randint(5, runner.source.spec.vocab_size, (context,)).tolist()
    sampling = SamplingConfig(max_new_tokens=4, temperature=0, ignore_eos=True, seed=0)
    for _ in runner.stream_generation(ids, sampling):
        pass
    engine = runner.engine
    engine.prefill(ids)
    engine.begin_decode(5, STEPS)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        list(engine.tokens())
    events = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and "Memcpy" not in event.name
    ]
    events.sort(key=lambda event: event[1])
    per_step, rest = divmod(len(events), STEPS)
    if rest:
        raise RuntimeError(f"{len(events)} kernels in {STEPS} equal steps")
    return [events[i : i + per_step] for i in range(0, len(events), per_step)]


def charge(
    steps: list[list[tuple[str, float, float]]], kinds: list[str]
) -> tuple[dict[str, float], dict[str, int], float]:
    """Median us a step by part, launches by part, and the median step time."""
    parts = name_parts([name for name, _, _ in steps[0]], kinds)
    times: dict[str, list[float]] = {part: [] for part in set(parts)}
    totals = []
    for before, step in itertools.pairwise(steps):
        last = max(end for _, _, end in before)
        totals.append(max(end for _, _, end in step) - last)
        sums = dict.fromkeys(times, 0.0)
        for part, (_, _, end) in zip(parts, step, strict=True):
            sums[part] += max(end - last, 0.0)
            last = max(last, end)
        for part, total in sums.items():
            times[part].append(total)
    launches = {part: parts.count(part) for part in times}
    return {part: statistics.median(values) for part, values in times.items()}, launches, statistics.median(totals)


def line(part: str, count: int, floor: float, us: float, launches: int) -> str:
    """One row of the table."""
    share = floor / us if us else 0.0
    return f"{part:20s} {count / 1e9:8.3f} {floor:10.1f} {us:10.1f} {us - floor:9.1f} {share:7.1%} {launches:9d}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma4-31b")
    parser.add_argument("--context", type=int, default=2401)
    parser.add_argument("--pdl", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--fuse", choices=("layer", "all"), default="all")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    bandwidth = read_bandwidth(torch.device("cuda"))
    torch.cuda.empty_cache()
    runner = Runner.from_config(
        RunConfig(
            model=args.model,
            load_format="dummy",
            ctx_size=args.context + 64,
            fuse=args.fuse,
            cuda_graph=True,
            pdl=args.pdl,
        )
    )
    spec = runner.source.spec
    measured, launches, step = charge(profile_steps(runner, args.context), [layer.kind for layer in spec.layers])
    needed = part_bytes(spec, args.context)
    print(f"{args.model} at {args.context}: {torch.cuda.get_device_name()}, read {bandwidth / 1e9:.0f} GB/s, bf16")
    print(f"{'part':20s} {'GB':>8s} {'floor us':>10s} {'us':>10s} {'gap us':>9s} {'share':>7s} {'launches':>9s}")
    rows = []
    for part, count in needed.items():
        floor, us = count / bandwidth * 1e6, measured.get(part, 0.0)
        rows.append(dict(part=part, bytes=count, floor_us=floor, us=us, launches=launches.get(part, 0)))
        print(line(part, count, floor, us, launches.get(part, 0)))
    total = sum(needed.values())
    print(line("step", total, total / bandwidth * 1e6, step, sum(launches.values())))
    if args.out:
        body = dict(model=args.model, context=args.context, pdl=runner.settings.pdl, read_bandwidth=bandwidth)
        write_result(args.out, f"roofline-{args.model}-{args.context}", {**body, "step_us": step, "parts": rows})


if __name__ == "__main__":
    main()
