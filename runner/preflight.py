"""Refuses a model that cannot fit, with the table of what it would need, before anything is allocated."""

from __future__ import annotations

import psutil
import torch

from models.errors import RunnerError
from models.load.source import Source
from runner.settings import Settings
from runner.work import decode_weights

WORKSPACE_BYTES = {"cuda": 1 << 30, "cpu": 256 << 20}  # activations of a prefill chunk, handles, graph


def memory_needs(source: Source, settings: Settings) -> dict[str, int]:
    """Bytes by purpose. Weights count every matrix once, and the embedding where it is not the head."""
    spec, itemsize = source.spec, settings.dtype.itemsize
    elements = decode_weights(spec)
    if not spec.tied_embeddings:
        elements += spec.vocab_size * spec.hidden_size
    needs = {"weights": elements * itemsize}
    for kind in dict.fromkeys(layer.kind for layer in spec.layers):
        needs[f"KV, {kind} layers"] = sum(
            layer.kv_capacity(settings.ctx_size) * layer.kv_row_bytes(itemsize)
            for layer in spec.layers
            if layer.kind == kind
        )
    needs["workspace"] = WORKSPACE_BYTES[settings.device.type]
    return needs


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available  # unlike free pages, this counts what the page cache would give back


def check_memory(source: Source, settings: Settings) -> None:
    """Raise RunnerError with the table and what to lower if the needs exceed the free memory."""
    needs, free = memory_needs(source, settings), free_memory(settings.device)
    if sum(needs.values()) <= free:
        return
    table = ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in needs.items())
    raise RunnerError(
        f"{source.name} does not fit on {settings.device}: needs {sum(needs.values()) / 2**30:.2f} GiB ({table}), "
        f"free {free / 2**30:.2f} GiB. Lower --ctx-size (now {settings.ctx_size}) or choose a smaller model or --dtype"
    )
