"""What a model is made of and how it would run, from its config and its files' headers: no weight is read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from models.attention import layer_routes
from models.catalog import CATALOG, find
from models.errors import LoadError
from models.load.fill import build_on_meta
from models.load.resolve import resolve
from models.load.source import Source
from models.spec import AttentionSpec
from runner.card import aligned
from runner.config import RunConfig
from runner.settings import Settings, choose_settings
from runner.work import decode_weights

Description = tuple[dict[str, Any], str]  # for programs, for people


def describe_catalog() -> Description:
    """The models known by name, and where their weights come from."""
    models = [
        {"name": entry.name, "family": entry.family, "hub_id": entry.hub_id, "demo": entry.demo}
        for entry in CATALOG.values()
    ]
    rows = [
        (entry.name, f"{entry.family}, {entry.hub_id}{', or the [demo] extra' if entry.demo else ''}")
        for entry in CATALOG.values()
    ]
    hint = (
        "Any of them runs without weights by --load-format dummy; directories, .gguf files and hub ids work as well.\n"
    )
    return {"models": models}, aligned(rows) + hint


def describe_model(args: argparse.Namespace) -> Description:
    """One model at one context on one device. Never downloads: for absent weights the shipped config speaks."""
    source, note = _find(args)
    settings = choose_settings(
        RunConfig(model=args.model, device=args.device, dtype=args.dtype, ctx_size=args.ctx_size), source.spec
    )
    itemsize = settings.dtype.itemsize
    parameters = _parameters(source)
    kinds = [_describe_kind(layers, settings) for layers in _by_kind(source.spec.layers)]
    kv_bytes = sum(kind["kv_bytes"] for kind in kinds)
    document = {
        "model": source.name,
        "family": source.family.name,
        "kind": source.kind,
        "path": str(source.path) if source.path else None,
        "note": note,
        "dummy_weights": source.kind == "dummy",
        "max_positions": source.spec.max_positions,
        "vocab_size": source.spec.vocab_size,
        "hidden_size": source.spec.hidden_size,
        "intermediate_size": source.spec.intermediate_size,
        "parameters": parameters,
        "stored_bytes": source.stored_bytes,
        "bytes_by_format": source.bytes_by_format,
        "device": str(settings.device),
        "dtype": str(settings.dtype).removeprefix("torch."),
        "weight_bytes": parameters * itemsize,
        "ctx_size": settings.ctx_size,
        "kv_bytes": kv_bytes,
        "bytes_per_token": decode_weights(source.spec) * itemsize + kv_bytes,
        "layers": kinds,
        "generation_defaults": source.generation_defaults,
    }
    return document, _as_text(document)


def _find(args: argparse.Namespace) -> tuple[Source, str | None]:
    if args.load_format == "dummy":
        return resolve(args.model, load_format="dummy", offline=True, revision=args.revision), None
    try:
        return resolve(args.model, offline=True, revision=args.revision), None
    except LoadError as error:
        entry = find(args.model)
        if entry is None or entry.demo:
            raise
        source = resolve(args.model, load_format="dummy")
        return source, f"weights are not on this machine, the shape is that of the shipped config ({error})"


def _by_kind(layers: Sequence[AttentionSpec]) -> list[list[AttentionSpec]]:
    """Layers that are alike in everything, in order of first appearance."""
    return [[layer for layer in layers if layer == kind] for kind in dict.fromkeys(layers)]


def _describe_kind(layers: list[AttentionSpec], settings: Settings) -> dict[str, Any]:
    layer = layers[0]
    rows = layer.kv_capacity(settings.ctx_size)
    routes = layer_routes(layer, settings.ctx_size, settings.dtype, settings.device, name=None, pdl=settings.pdl)
    chosen = routes.decode
    return {
        "kind": layer.kind,
        "count": len(layers),
        "num_heads": layer.num_heads,
        "num_kv_heads": layer.num_kv_heads,
        "head_dim": layer.head_dim,
        "window": layer.window,
        "value_is_key": layer.value_is_key,
        "kv_rows": rows,
        "kv_bytes": len(layers) * rows * layer.kv_row_bytes(settings.dtype.itemsize),
        "route": chosen.kernel,
        "why": chosen.why,
    }


def _parameters(source: Source) -> int:
    """Counted in the file, or on the meta device where there is none. Tied weights count once."""
    if source.stored:
        return sum(tensor.numel for tensor in source.stored)
    twice = {"lm_head.weight"} if source.spec.tied_embeddings else set()  # the meta device breaks the tie
    named = build_on_meta(source).named_parameters()
    return sum(parameter.numel() for name, parameter in named if name not in twice)


def _as_text(d: dict[str, Any]) -> str:
    rows = [("model", f"{d['model']} ({d['family']}), {d['kind']}" + (f" {d['path']}" if d["path"] else ""))]
    if d["note"]:
        rows.append(("note", d["note"]))
    count, vocabulary, positions = d["parameters"] / 1e9, d["vocab_size"], d["max_positions"]
    rows.append(("size", f"{count:.3f} B parameters, vocabulary {vocabulary}, up to {positions} positions"))
    if d["stored_bytes"]:
        formats = ", ".join(f"{name} {_size(count)}" for name, count in d["bytes_by_format"].items())
        rows.append(("stored", f"{_size(d['stored_bytes'])}: {formats}"))
    rows.append(("in memory", f"{_size(d['weight_bytes'])} of weights as {d['dtype']} on {d['device']}"))
    for kind in d["layers"]:
        window = f", window {kind['window']}" if kind["window"] else ""
        shared = ", values are keys" if kind["value_is_key"] else ""
        heads = f"{kind['num_heads']} heads over {kind['num_kv_heads']}, head_dim {kind['head_dim']}"
        rows.append((f"{kind['kind']} layers", f"{kind['count']}: {heads}{window}{shared}"))
        rows.append(("  KV", f"{kind['kv_rows']} rows, {_size(kind['kv_bytes'])}"))
        rows.append(("  decode route", f"{kind['route']}: {kind['why']}"))
    rows.append(("KV", f"{_size(d['kv_bytes'])} at context {d['ctx_size']}"))
    rows.append(("per token", f"{_size(d['bytes_per_token'])} read by a decode step at context {d['ctx_size']}"))
    return aligned(rows)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
