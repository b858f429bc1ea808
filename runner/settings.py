"""Fills in what the user left open: device, dtype, context, graph, fusion. Refuses combinations that cannot be."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.errors import UsageError
from models.spec import ModelSpec
from models.swap import AttentionMode
from runner.config import Fuse, RunConfig

DEFAULT_CTX_SIZE = 4096
PREFILL_CHUNK = {"cuda": 4096, "cpu": 512}


@dataclass(frozen=True)
class Settings:
    """A RunConfig with every choice made. `ctx_size` and `prefill_chunk` count tokens."""

    device: torch.device
    dtype: torch.dtype
    attention: AttentionMode
    cuda_graph: bool
    fuse: Fuse
    pdl: bool
    ctx_size: int
    prefill_chunk: int


def choose_settings(config: RunConfig, spec: ModelSpec) -> Settings:
    """The settings of a run. Raises UsageError for a device that is not there and flags that exclude each other."""
    device = choose_device(config.device)
    cuda = device.type == "cuda"
    if config.cuda_graph and not cuda:
        raise UsageError(f"--cuda-graph needs a CUDA device, found {device}")
    if config.fuse not in (None, "none") and config.attention == "hf":
        raise UsageError(f"--fuse {config.fuse} needs our attention modules, found --attention hf")
    if config.pdl and not _supports_pdl(device):
        raise UsageError(f"--pdl needs an NVIDIA GPU of compute capability 9.0 or later, found {device}")
    ctx_size = config.ctx_size or min(spec.max_positions, DEFAULT_CTX_SIZE)
    if ctx_size > spec.max_positions:
        raise UsageError(f"--ctx-size {ctx_size}: this model knows {spec.max_positions} positions")
    fuse = config.fuse or ("all" if cuda and config.attention != "hf" else "none")
    return Settings(
        device=device,
        dtype=getattr(torch, config.dtype) if config.dtype else (torch.bfloat16 if cuda else torch.float32),
        attention=config.attention,
        cuda_graph=cuda if config.cuda_graph is None else config.cuda_graph,
        fuse=fuse,
        pdl=fuse != "none" and _supports_pdl(device) if config.pdl is None else config.pdl,
        ctx_size=ctx_size,
        prefill_chunk=config.prefill_chunk or PREFILL_CHUNK[device.type],
    )


def choose_device(name: str | None) -> torch.device:
    """The named device, or the GPU where there is one."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from error
    if device.type not in PREFILL_CHUNK:
        raise UsageError(f"--device {name}: expected cuda or cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch {torch.__version__} sees no CUDA device")
    return device


def _supports_pdl(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    from kernels.pdl import supports_pdl

    return supports_pdl(device)
