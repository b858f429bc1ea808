"""The one place that refuses a bad attention call. Every entry, CPU twin included, checks here first."""

from __future__ import annotations

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SPLITK_MAX_QUERIES = 8
SPLITK_MAX_HEAD_DIM = 512
SPLITK_MAX_ROWS = 128  # query rows that share one key-value head
STANDARD_MAX_HEAD_DIM = 512


def _describe(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> str:
    return f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"


def check_call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    kv_len: int | torch.Tensor | None,
    window: int | None,
    out: torch.Tensor | None,
    scale: float | None = None,
) -> None:
    """Raise ValueError, naming the shapes, unless these arguments make a valid call (see kernels.sdpa.sdpa)."""
    shapes = _describe(query, key, value)
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        raise ValueError(f"sdpa needs 4-dimensional [B, H, L, D] tensors, found {shapes}")
    B, H, L_q, D = query.shape
    if key.shape != value.shape:
        raise ValueError(f"sdpa needs key and value of one shape, found {shapes}")
    if key.shape[0] != B or key.shape[3] != D:
        raise ValueError(f"sdpa needs one batch size and one head_dim, found {shapes}")
    K, L_kv = key.shape[1], key.shape[2]
    if K == 0 or H % K:
        raise ValueError(f"sdpa needs query heads to be a multiple of key-value heads, found {H} over {K}: {shapes}")
    if L_q == 0 or L_kv == 0:
        raise ValueError(f"sdpa needs at least one query and one key row, found {shapes}")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"sdpa needs one dtype, found {query.dtype}, {key.dtype}, {value.dtype}: {shapes}")
    if query.dtype not in DTYPES:
        raise ValueError(f"sdpa takes bfloat16, float16 or float32, found {query.dtype}: {shapes}")
    if not query.device == key.device == value.device:
        raise ValueError(f"sdpa needs one device, found {query.device}, {key.device}, {value.device}: {shapes}")
    if D > 1 and not query.stride(3) == key.stride(3) == value.stride(3) == 1:
        raise ValueError(
            f"sdpa needs a contiguous last dimension, found strides {query.stride()}, {key.stride()}, "
            f"{value.stride()}: {shapes}"
        )
    if dropout_p != 0.0:
        raise ValueError(f"sdpa is for inference: dropout_p must be 0.0, found {dropout_p} ({shapes})")
    if scale is not None and not scale > 0.0:
        raise ValueError(f"sdpa needs scale > 0, found {scale} ({shapes})")
    if window is not None and window < 1:
        raise ValueError(f"sdpa needs window >= 1 or None, found {window} ({shapes})")
    _check_kv_len(kv_len, L_kv, query.device, shapes)
    if attn_mask is not None:
        _check_mask(attn_mask, (B, H, L_q, L_kv), query.device, shapes)
    if out is not None and (out.shape != query.shape or out.dtype != query.dtype or out.device != query.device):
        raise ValueError(
            f"sdpa needs out like query ({tuple(query.shape)}, {query.dtype}, {query.device}), "
            f"found {tuple(out.shape)}, {out.dtype}, {out.device}"
        )
    if out is not None and D > 1 and out.stride(3) != 1:
        raise ValueError(f"sdpa needs out with a contiguous last dimension, found strides {out.stride()}")


def _check_kv_len(kv_len: int | torch.Tensor | None, L_kv: int, device: torch.device, shapes: str) -> None:
    if kv_len is None:
        return
    if isinstance(kv_len, torch.Tensor):
        if kv_len.numel() != 1 or kv_len.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"sdpa needs kv_len as one int32 or int64, found {tuple(kv_len.shape)} {kv_len.dtype} ({shapes})"
            )
        if kv_len.device != device:
            raise ValueError(f"sdpa needs kv_len on {device}, found it on {kv_len.device} ({shapes})")
    elif not 0 <= kv_len <= L_kv:
        raise ValueError(f"sdpa needs 0 <= kv_len <= {L_kv} (the key rows), found {kv_len} ({shapes})")


def _check_mask(mask: torch.Tensor, full: tuple[int, int, int, int], device: torch.device, shapes: str) -> None:
    fits = mask.dim() <= 4 and all(
        have in (1, want) for have, want in zip(reversed(mask.shape), reversed(full), strict=False)
    )
    if not fits:
        raise ValueError(f"sdpa needs attn_mask broadcastable to {full}, found {tuple(mask.shape)} ({shapes})")
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise ValueError(f"sdpa needs a boolean or floating attn_mask, found {mask.dtype} ({shapes})")
    if mask.device != device:
        raise ValueError(f"sdpa needs attn_mask on {device}, found it on {mask.device} ({shapes})")


def check_splitk(query: torch.Tensor, key: torch.Tensor, *, max_queries: int) -> None:
    """Raise ValueError unless split-K can run this (already checked) call: few queries, D a power of two in 16..512."""
    L_q, D = query.shape[2], query.shape[3]
    group = query.shape[1] // key.shape[1]
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}"
    if L_q > max_queries:
        raise ValueError(f"split-K takes L_q <= {max_queries} here, found L_q = {L_q}: {shapes}")
    if D < 16 or D > SPLITK_MAX_HEAD_DIM or D & (D - 1):
        raise ValueError(f"split-K needs head_dim a power of two in 16..{SPLITK_MAX_HEAD_DIM}, found {D}: {shapes}")
    if group * L_q > SPLITK_MAX_ROWS:
        raise ValueError(
            f"split-K takes at most {SPLITK_MAX_ROWS} queries a key-value head, found {group * L_q}: {shapes}"
        )


def check_standard(query: torch.Tensor, key: torch.Tensor) -> None:
    """Raise ValueError unless the standard kernel can run this (already checked) call: D a multiple of 16 up to 512."""
    D = query.shape[3]
    if D % 16 or not 16 <= D <= STANDARD_MAX_HEAD_DIM:
        raise ValueError(
            f"the standard kernel needs head_dim to be a multiple of 16 in 16..{STANDARD_MAX_HEAD_DIM}, found {D}: "
            f"query {tuple(query.shape)}, key {tuple(key.shape)}"
        )
