"""How fast weights get from safetensors files to the GPU, beside safetensors' own loader on the same files.

    python -m scripts.load_speed --model qwen3-8b --folder /tmp/checkpoint --out scripts/results/h100

Writes a random bf16 checkpoint at the model's true shape into --folder once (16 GB for qwen3-8b), then loads it with
the files in the host's page cache ("cached") and after they were dropped from it ("from disk"), each way in turn.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from models.catalog import CATALOG
from models.load.dummy import fill_with_noise
from models.load.fill import build_on_meta, find_slots
from runner.config import RunConfig
from runner.pipeline import load, load_source
from scripts.provenance import write_result

SHARD_BYTES = 4 << 30


def write_checkpoint(model: str, folder: Path) -> None:
    """Random weights in Hugging Face's layout: config.json, shards and their index."""
    folder.mkdir(parents=True)
    source = load_source(RunConfig(model=model, load_format="dummy"))
    shapes = {name: slot.shape for name, slot in find_slots(build_on_meta(source)).items()}
    if source.spec.tied_embeddings:
        shapes.pop("lm_head.weight", None)
    shards = split(shapes)
    where = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: torch.empty(shapes[name], dtype=torch.bfloat16, device="cuda") for name in names}
        fill_with_noise(tensors, source.family, torch.device("cuda"), seed=number)
        save_file(tensors, folder / file)
        where.update(dict.fromkeys(names, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps(CATALOG[model].config()))


def split(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    """The names in shards of at most SHARD_BYTES of bf16, or of one tensor that is larger."""
    shards: list[list[str]] = []
    room = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def drop_from_cache(paths: list[Path]) -> None:
    """Ask the host to forget the files' pages. They must be on the disk for that, hence the fsync."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def by_us(folder: Path) -> float:
    """Seconds of our fill, model and all, as the report's `load` counts them."""
    config = RunConfig(model=str(folder), ctx_size=64, cuda_graph=False)
    return load(config, load_source(config)).fill_report.seconds


def by_safetensors(paths: list[Path]) -> float:
    """Seconds of safetensors.torch.load_file of every shard, onto the device."""
    started = time.perf_counter()
    held = [load_file(path, device="cuda") for path in paths]
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    del held
    return seconds


def seconds_of(way: Callable[[], float], paths: list[Path], *, cached: bool, runs: int) -> list[float]:
    found = []
    for _ in range(runs):
        gc.collect()
        torch.cuda.empty_cache()
        if not cached:
            drop_from_cache(paths)
        found.append(way())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CATALOG, default="qwen3-8b")
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint is, or will be written")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not args.folder.exists():
        write_checkpoint(args.model, args.folder)
    paths = sorted(args.folder.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in paths)
    torch.zeros(1, device="cuda")  # the CUDA context is nobody's load time
    ways: dict[str, Callable[[], float]] = {
        "runner": lambda: by_us(args.folder),
        "safetensors": lambda: by_safetensors(paths),
    }
    rows: list[dict[str, Any]] = []
    for cached in (True, False):
        for name, way in ways.items():
            if cached:
                way()  # whatever is not in the page cache yet comes in here
            seconds = seconds_of(way, paths, cached=cached, runs=args.runs)
            rate = size / statistics.median(seconds) / 1e9
            rows.append(dict(loader=name, cached=cached, seconds=seconds, gb_per_s=rate))
            told = ", ".join(f"{one:.2f}" for one in seconds)
            print(f"{name:12s} {'cached' if cached else 'from disk':10s} {rate:6.2f} GB/s ({told} s)", flush=True)
    if args.out:
        write_result(args.out, f"load-{args.model}", dict(model=args.model, bytes=size, rows=rows))


if __name__ == "__main__":
    main()
