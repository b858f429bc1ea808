"""The story of a run, stage by stage: resolve, build, swap, fill, engine. Capture and generation follow per prompt.

RunConfig -> resolve -> build -> swap -> fill -> Engine;  per prompt: prepare (capture) -> prefill -> decode -> report
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.cache import KVCaches
from models.fused_model import fuse_layers, hf_name
from models.lm import CausalLM, HuggingFaceLM, RoutedLM
from models.load.fill import FillReport, build_on_meta, fill
from models.load.resolve import resolve
from models.load.source import Source
from models.packing import projection_packs
from models.swap import SwapReport, swap_attention
from runner.config import RunConfig
from runner.engine import Engine
from runner.preflight import check_memory
from runner.settings import Settings, choose_settings

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, and what getting there was like."""

    source: Source
    settings: Settings
    engine: Engine
    swap_report: SwapReport
    fill_report: FillReport


def load_source(config: RunConfig) -> Source:
    """Find the model and read everything but its weights."""
    return resolve(config.model, load_format=config.load_format, offline=config.offline, revision=config.revision)


def load(config: RunConfig, source: Source, progress: Progress | None = None) -> Loaded:
    """Build the Hugging Face model, swap in our parts, fill it, and put an engine around it."""
    settings = choose_settings(config, source.spec)
    check_memory(source, settings)
    model = build_on_meta(source)
    lm, swap_report = swap(model, source, settings)
    fill_report = fill(
        model,
        source,
        device=settings.device,
        dtype=settings.dtype,
        packs=[tuple(map(hf_name, pack)) for pack in projection_packs(model)],
        rename=hf_name,
        progress=progress,
        check_tensors=config.check_tensors,
    )
    engine = Engine(lm, device=settings.device, prefill_chunk=settings.prefill_chunk, cuda_graph=settings.cuda_graph)
    return Loaded(source, settings, engine, swap_report, fill_report)


def swap(model: Any, source: Source, settings: Settings) -> tuple[CausalLM, SwapReport]:
    """Replace what the settings ask for, and give the model the caches that go with it."""
    if settings.attention == "hf":
        report = swap_attention(model, source.spec, None, "hf")
        return HuggingFaceLM(model, settings.ctx_size), report
    caches = KVCaches(source.spec, settings.ctx_size, device=settings.device, dtype=settings.dtype)
    report = swap_attention(model, source.spec, caches, settings.attention, pdl=settings.pdl)
    if settings.fuse != "none":
        fuse_attention = settings.fuse == "all"
        report += fuse_layers(model, source.family, source.spec, pdl=settings.pdl, fuse_attention=fuse_attention)
    return RoutedLM(model, caches), report
