"""Time the chain of kernels of one decode step at a model's true shape, each fusion on and off.

`python -m scripts.chain`: random weights, one CUDA graph, all layers distinct. Every kernel is first checked against
its fp32 twin, and the step under dependent launch against the plain one, bit for bit; the run fails when either
differs. Writes chain.json into --out.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kernels.ceilings import read_bandwidth
from kernels.matvec import MatvecConfig, config_for
from kernels.sdpa.config import SplitKConfig
from kernels.timing import capture
from scripts.chain_kernels import (
    CANDIDATES,
    MODES,
    CompileJob,
    check_jobs,
    check_matvec,
    check_small,
    precompile,
    replay_ms,
    sweep,
)
from scripts.chain_model import ALL_PARTS, SHAPES, Chain, ModelShape, Part, Plan
from scripts.provenance import write_result

# A bf16 result is rounded once; twice its half spacing bounds the error of a sound kernel.
BF16_ERROR = 4e-3


def matrices(shape: ModelShape) -> list[tuple[int, int, bool]]:
    """(rows, cols, gated) of every distinct matrix but the head."""
    K, F = shape.hidden, shape.intermediate
    found = [(a.qkv_rows, K, False) for a in set(shape.layers)]
    found += [(K, a.heads * a.head_dim, False) for a in set(shape.layers)]
    return [*found, (2 * F, K, True), (K, F, False)]


def plans(shape: ModelShape) -> dict[str, Plan]:
    """The A/B of one model. "table" is the plan to ship: dependent launch, seams, the table's configurations."""
    fused = SplitKConfig()
    apart = SplitKConfig(reduce="apart", overlap=True, dependent=True)
    fine = replace(apart, block_n=16, min_rows=16, programs_per_sm=4)
    table = Plan(pdl=True, attention="fused")
    found = {
        "plain": Plan(attention=fused),
        "plain, norm prologue": Plan(norms="prologue", attention=fused),
        "late trigger": replace(table, trigger="late"),
        "table": table,
        "table, attention apart": replace(table, attention=apart),
        "table, attention apart in small splits": replace(table, attention=fine),
        "table, attention merged by the last block": replace(table, attention=replace(fused, dependent=True)),
    }
    if not shape.sandwich:
        found["table, residual in epilogue"] = replace(table, residual_epilogue=True)
    parts: tuple[Part, ...] = ("matvec", "attention", "small")
    for part in parts:
        found[f"only {part}"] = replace(table, parts=frozenset((part,)))
    found["without attention"] = replace(table, parts=ALL_PARTS - {"attention"})
    return found


def difference(chain: Chain, plan: Plan, replays: int) -> str:
    """How replays under dependent launch differ from the same step without it; empty when bit for bit equal."""
    eager = replace(plan, pdl=False)
    if eager.attention != "fused":
        eager = replace(eager, attention=replace(eager.attention, dependent=False, overlap=False))
    expected = chain.step(eager).clone()
    if not bool(expected.isfinite().all()):
        return f"{int((~expected.isfinite()).sum())} logits of the plain step are not finite"
    graph = capture([lambda: chain.step(plan)])
    found = []
    for _ in range(replays):
        chain.logits.fill_(float("nan"))
        graph.replay()
        found.append(chain.logits.clone())
    wrong = [int((one != expected).sum()) for one in found]
    if not any(wrong):
        return ""
    apart = max(float((one - expected).abs().max()) for one in found)
    alike = all(torch.equal(one, found[0]) for one in found)
    return f"logits that differ by replay: {wrong}, by {apart:.2e} at most; replays alike: {alike}"


def time_chain(
    name: str, bandwidth: float, device: torch.device, layers: int | None, only: str | None
) -> dict[str, Any]:
    """All plans of one model."""
    chain = Chain(SHAPES[name], device, layers)
    result: dict[str, Any] = {"layers": len(chain.layers), "bytes": chain.bytes_per_token(), "plans": {}}
    print(f"\n{name}: {len(chain.layers)} layers, {chain.bytes_per_token() / 1e9:.2f} GB", flush=True)
    ladder = plans(chain.shape)
    for label, plan in ladder.items():
        if plan.parts == ALL_PARTS and (wrong := difference(chain, plan, 4)):
            result.setdefault("wrong", {})[label] = wrong
            print(f"  WRONG {label}: {wrong}", flush=True)
    for label, plan in ladder.items():
        if only and only not in label:
            continue
        ms = replay_ms(lambda: chain.step(plan))  # noqa: B023
        floor = chain.bytes_per_token(plan.parts) / bandwidth * 1e3
        result["plans"][label] = {"ms": round(ms, 4), "share": round(floor / ms, 4)}
        print(f"  {label:28s} {ms:8.3f} ms  {floor / ms:6.1%} of the roof  {1e3 / ms:6.1f} /s", flush=True)
    return result


def compile_jobs(names: list[str], with_sweep: bool) -> list[CompileJob]:
    """Every matvec variant the run needs, each once."""
    jobs: dict[str, CompileJob] = {}
    for name in names:
        shape = SHAPES[name]
        for rows, cols, gated in matrices(shape):
            table = config_for(rows, cols, gated=gated)
            variants: list[tuple[MatvecConfig, dict[str, Any]]] = [(table, {}), (table, {"norm": True})]
            if not (shape.sandwich or gated):
                variants.append((table, {"residual": True}))
            if with_sweep:
                variants += [(candidate, {}) for candidate in CANDIDATES]
            for launch, flag in variants:
                for pdl, trigger in MODES:
                    options = {**flag, "activation": shape.activation}
                    job = (rows, cols, gated, replace(launch, trigger=trigger), pdl, options)
                    jobs[repr((cols, *job[2:]))] = job
    return list(jobs.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--sweep", nargs="*", default=[], choices=list(SHAPES), help="models whose matrices to sweep")
    parser.add_argument("--layers", type=int, help="time only the first LAYERS layers")
    parser.add_argument("--only", help="time only the plans whose name contains this")
    parser.add_argument("--no-check", action="store_true", help="skip the kernels' own checks (the chain's stay)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")))
    arguments = parser.parse_args()
    device, start = torch.device("cuda"), time.time()
    jobs = compile_jobs(sorted({*arguments.models, *arguments.sweep}), bool(arguments.sweep))
    precompile(jobs if arguments.no_check else [*jobs, *check_jobs()], 15)
    print(f"compiled in {time.time() - start:.0f} s", flush=True)
    memory = torch.empty(4 << 30, device=device, dtype=torch.bfloat16).uniform_(-1, 1)
    bandwidth = read_bandwidth(device, memory)
    report: dict[str, Any] = {"read_bytes_per_s": bandwidth}
    print(f"{torch.cuda.get_device_name()}: read {bandwidth / 1e9:.0f} GB/s", flush=True)
    if not arguments.no_check:
        report["errors"] = check_matvec(device) | check_small(device)
        print({k: f"{v:.1e}" for k, v in report["errors"].items()}, f"{time.time() - start:.0f} s", flush=True)
        if not all(value < BF16_ERROR for value in report["errors"].values()):
            sys.exit(f"a kernel is wrong: {report['errors']}")
    report["sweep"] = {}
    for name in arguments.sweep:
        fresh = [m for m in matrices(SHAPES[name]) if f"{m[0]}x{m[1]}{' gated' if m[2] else ''}" not in report["sweep"]]
        report["sweep"] |= sweep(fresh, memory, bandwidth)
    for shape, found in report["sweep"].items():
        for entry in found[:4]:
            print(f"  {shape:20s} {entry}", flush=True)
    del memory
    torch.cuda.empty_cache()
    report["chains"] = {}
    for name in arguments.models:
        report["chains"][name] = time_chain(name, bandwidth, device, arguments.layers, arguments.only)
        torch.cuda.empty_cache()
        write_result(arguments.out, "chain", report)
    print(f"done in {time.time() - start:.0f} s", flush=True)
    if any("wrong" in chain for chain in report["chains"].values()):
        sys.exit("dependent launch changed the bits of a step: see WRONG above")


if __name__ == "__main__":
    main()
