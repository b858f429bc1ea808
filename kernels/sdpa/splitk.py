"""Host side of split-K: workspace, grid and launch. Nothing synchronises, and with a workspace nothing allocates."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import triton

from kernels.pdl import launch_options, supports_pdl
from kernels.sdpa.config import SplitKConfig
from kernels.sdpa.splitk_kernels import combine_kernel, splitk_kernel

MAX_SPLITS = 256
INTERPRETED_SMS = 8  # the interpreter has no multiprocessors; a small grid keeps its tests quick


@dataclass(frozen=True)
class SplitKWorkspace:
    """Partial results of one launch, and the arrival counters, which are zero between launches.

    part fp32 [B * K, max_splits, L_q * G, D], lse fp32 [B * K, max_splits, L_q * G] (base-2 log of the weights' sum),
    arrivals int32 [B * K, 2]. It serves one stream at a time.
    """

    part: torch.Tensor
    lse: torch.Tensor
    arrivals: torch.Tensor
    max_splits: int


def sm_count(device: torch.device) -> int:
    """Multiprocessors of a CUDA device, or a small stand-in when the interpreter runs on the CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else INTERPRETED_SMS


def max_splits(heads: int, programs_per_sm: int, device: torch.device) -> int:
    """Splits that fill the device `programs_per_sm` times over with `heads` = B * K heads: the grid's second axis."""
    return max(1, min(MAX_SPLITS, sm_count(device) * programs_per_sm // heads))


def make_workspace(heads: int, rows: int, head_dim: int, splits: int, device: torch.device) -> SplitKWorkspace:
    """A fresh workspace for `heads` = B * K key-value heads with `rows` = L_q * H / K query rows each."""
    return SplitKWorkspace(
        part=torch.empty(heads, splits, rows, head_dim, dtype=torch.float32, device=device),
        lse=torch.empty(heads, splits, rows, dtype=torch.float32, device=device),
        arrivals=torch.zeros(heads, 2, dtype=torch.int32, device=device),
        max_splits=splits,
    )


_workspaces: dict[tuple[Any, ...], SplitKWorkspace] = {}


def _cached_workspace(heads: int, rows: int, head_dim: int, splits: int, device: torch.device) -> SplitKWorkspace:
    """The workspace of these sizes. Entries are never dropped: captured graphs hold their addresses."""
    name = (device, heads, rows, head_dim, splits)
    found = _workspaces.get(name)
    if found is None:
        found = make_workspace(heads, rows, head_dim, splits, device)
        # Inside a capture the zeroing is recorded, not run: such a workspace is good for that graph alone.
        if not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            _workspaces[name] = found
    return found


def workspace_for(
    given: SplitKWorkspace | None, heads: int, rows: int, head_dim: int, programs_per_sm: int, device: torch.device
) -> SplitKWorkspace:
    """`given`, or the cached workspace of these sizes when it is None. ValueError when `given` was made for others."""
    if given is None:
        return _cached_workspace(heads, rows, head_dim, max_splits(heads, programs_per_sm, device), device)
    if given.part.shape != (heads, given.max_splits, rows, head_dim):
        raise ValueError(
            f"split-K needs a workspace for {heads} heads x {rows} rows x head_dim {head_dim}, "
            f"found one of {tuple(given.part.shape)}"
        )
    return given


def one_tile(bound: int, splits: int, block_n: int, min_rows: int) -> bool:
    """Whether no split of up to `bound` rows is longer than one tile of `block_n`, a multiple of 16."""
    return bound <= splits * block_n and min_rows <= block_n


def interpreting() -> bool:
    """Whether triton kernels run in the interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def launch_splitk(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    attn_mask: torch.Tensor | None,
    *,
    is_causal: bool,
    scale: float,
    kv_len: int | torch.Tensor | None,
    window: int | None,
    config: SplitKConfig,
    workspace: SplitKWorkspace | None = None,
    kv_len_settled: bool = False,
) -> torch.Tensor:
    """Run the kernel on arguments that passed check_call and check_splitk; writes and returns `out`.

    Raises ValueError when `workspace` was made for other sizes.
    """
    B, H, L_q, D = query.shape
    K, L_kv = key.shape[1], key.shape[2]
    G = H // K
    rows, heads = L_q * G, B * K
    workspace = workspace_for(workspace, heads, rows, D, config.programs_per_sm, query.device)
    splits = workspace.max_splits
    on_device = isinstance(kv_len, torch.Tensor)
    bound = kv_len if isinstance(kv_len, int) else L_kv
    mask, mask_kind, mask_strides = mask_operands(attn_mask, (B, H, L_q, L_kv), query)
    fused = config.reduce == "fused"
    # Waiting blocks must be few beside the device's slots, and the interpreter runs one block after the other.
    reducers = 1 if interpreting() else min(config.reducers, max(1, sm_count(query.device) // (2 * heads)))
    reducers = 1 << (reducers.bit_length() - 1)
    padded_rows = triton.next_power_of_2(rows)
    merge_rows = min(padded_rows, max(1, config.num_warps * 32 * 32 * reducers // D))
    pdl = supports_pdl(query.device)
    dependent = config.dependent and pdl
    overlap = config.overlap and pdl and not fused
    splitk_kernel[(K, splits, B)](
        query,
        key,
        value,
        out,
        mask,
        kv_len if on_device else query,
        workspace.part,
        workspace.lse,
        workspace.arrivals,
        bound,
        0 if window is None else window,
        config.min_rows,
        0,
        scale,
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *out.stride()[:3],
        *mask_strides,
        L_Q=L_q,
        G=G,
        D=D,
        M=max(16, padded_rows),
        BLOCK_N=config.block_n,
        SPLITS=splits,
        HAS_KV_LEN=on_device,
        CAUSAL=(is_causal or window is not None) and L_q > 1,
        WINDOWED=window is not None,
        MASK_KIND=mask_kind,
        FUSED=fused,
        REDUCERS=reducers,
        MERGE_ROWS=merge_rows,
        MERGE_AT_ONCE=at_once(merge_rows * D // reducers, config.num_warps),
        DEPENDENT=dependent,
        OVERLAP=overlap,
        PREFETCH=config.prefetch_rows,
        SETTLED=kv_len_settled or not on_device,
        LATE_QUERY=config.late_query,
        PIN=not interpreting(),
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **launch_options(dependent),
    )
    if not fused:
        launch_combine(
            workspace,
            out,
            kv_len,
            bound=bound,
            window=window,
            min_rows=config.min_rows,
            key_heads=K,
            overlap=overlap,
        )
    return out


def launch_combine(
    workspace: SplitKWorkspace,
    out: torch.Tensor,
    kv_len: int | torch.Tensor | None,
    *,
    bound: int,
    window: int | None,
    min_rows: int,
    key_heads: int,
    overlap: bool,
) -> None:
    """Merge the splits in `workspace` into `out` [B, H, L_q, D]; the bounds are those that the splits were made by.

    One warp a program: it sums over the splits without shared memory, and finds room beside split-K's programs.
    """
    B, H, L_q, D = out.shape
    splits = workspace.max_splits
    columns = min(D, 64 if splits <= 48 else 32)
    on_device = isinstance(kv_len, torch.Tensor)
    combine_kernel[(D // columns, L_q * H // key_heads, B * key_heads)](
        workspace.part,
        workspace.lse,
        out,
        kv_len if on_device else out,
        bound,
        0 if window is None else window,
        min_rows,
        *out.stride()[:3],
        L_Q=L_q,
        G=H // key_heads,
        K=key_heads,
        D=D,
        COLS=columns,
        SPLITS=splits,
        HAS_KV_LEN=on_device,
        WINDOWED=window is not None,
        AT_ONCE=min(triton.next_power_of_2(splits), 2048 // columns),  # up to 64 values a thread
        OVERLAP=overlap,
        num_warps=1,
        **launch_options(overlap),
    )


def at_once(elements: int, num_warps: int) -> int:
    """How many splits to merge in one go, so that a thread holds about 32 of their values."""
    return max(1, min(64, num_warps * 32 * 32 // elements))


def mask_operands(
    attn_mask: torch.Tensor | None, full: tuple[int, int, int, int], query: torch.Tensor
) -> tuple[torch.Tensor, int, tuple[int, ...]]:
    """(tensor, kind, strides) of a mask broadcast to `full` without a copy; kind 0 none, 1 boolean, 2 additive."""
    if attn_mask is None:
        return query, 0, (0, 0, 0, 0)
    mask = attn_mask.expand(full)
    if mask.dtype == torch.bool:
        return mask.view(torch.uint8), 1, mask.stride()
    return mask, 2, mask.stride()
