"""Entry point of decode_attention: checks, workspace, launch of split-K and of the merge of its splits."""

from __future__ import annotations

import torch
import triton

from kernels.decode_attention import reference
from kernels.decode_attention.config import DecodeAttentionConfig, config_for
from kernels.decode_attention.kernel import decode_attention_kernel
from kernels.norm.spec import Norm, norm_operands
from kernels.pdl import launch_options
from kernels.sdpa.splitk import SplitKWorkspace, interpreting, launch_combine, one_tile, workspace_for


def decode_attention(
    qkv: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    *,
    position: torch.Tensor,
    row: torch.Tensor,
    kv_len: torch.Tensor,
    inv_freq: torch.Tensor,
    num_heads: int,
    scale: float,
    q_norm: Norm | None = None,
    k_norm: Norm | None = None,
    v_norm: Norm | None = None,
    value_is_key: bool = False,
    attention_scaling: float = 1.0,
    out: torch.Tensor | None = None,
    config: DecodeAttentionConfig | None = None,
    workspace: SplitKWorkspace | None = None,
    pdl: bool = False,
) -> torch.Tensor:
    """Attention of one decoded token, from the packed q|k|v product to the context [1, H, 1, D].

    Norms and rotates q and k, norms v, stores k and v in the caches' row `row`, and attends over the caches' first
    `kv_len` rows, that one included. qkv: (H + 2 KV) D contiguous values, packed q | k | v heads; with value_is_key
    (H + KV) D, and v is the raw k. key_cache, value_cache: [1, KV, C, D] of qkv's dtype, last stride 1, D a power of
    two from 32 to 512. position (the angle), row (int64) and kv_len (int32): one element each on the device.
    inv_freq: fp32 [D/2]. scale > 0. attention_scaling: factor of cos and sin. Norms may be None. `workspace`: of KV
    heads x G rows, one stream at a time; a shared one when None.

    pdl: dependent launch. Then position, row, kv_len and every other row of the caches must have been written before
    the chain of dependent launches began, since they are read before the wait.
    CPU tensors run the torch twin. Raises ValueError when shapes do not fit.
    """
    _, KV, capacity, D = key_cache.shape
    values = (num_heads + KV * (1 if value_is_key else 2)) * D
    if qkv.numel() != values or not qkv.is_contiguous() or num_heads % KV:
        raise ValueError(
            f"decode_attention: qkv {tuple(qkv.shape)} must be {values} contiguous values for {num_heads} query heads "
            f"over {KV} key-value heads x {D}"
        )
    alike = key_cache.shape == value_cache.shape and key_cache.dtype == value_cache.dtype == qkv.dtype
    if not alike or key_cache.stride(3) != 1 or value_cache.stride(3) != 1 or inv_freq.numel() * 2 != D:
        raise ValueError(
            f"decode_attention: caches {tuple(key_cache.shape)} {key_cache.dtype} and {tuple(value_cache.shape)} "
            f"{value_cache.dtype}, {inv_freq.numel()} inverse frequencies and qkv of {qkv.dtype} do not fit together"
        )
    if qkv.device.type == "cpu":
        return reference.decode_attention(
            qkv, key_cache, value_cache, position=position, row=row, kv_len=kv_len, inv_freq=inv_freq,
            num_heads=num_heads, scale=scale, q_norm=q_norm, k_norm=k_norm, v_norm=v_norm, value_is_key=value_is_key,
            attention_scaling=attention_scaling, out=out,
        )  # fmt: skip
    if D & (D - 1) or not 32 <= D <= 512:
        raise ValueError(f"decode_attention: head_dim {D}, expected a power of two from 32 to 512")
    if out is None:
        out = qkv.new_empty((1, num_heads, 1, D))
    launch_decode_attention(
        qkv, key_cache, value_cache, out, position=position, row=row, kv_len=kv_len, inv_freq=inv_freq, scale=scale,
        q_norm=q_norm, k_norm=k_norm, v_norm=v_norm, value_is_key=value_is_key, attention_scaling=attention_scaling,
        config=config or config_for(D, capacity), workspace=workspace, pdl=pdl,
    )  # fmt: skip
    return out


def launch_decode_attention(
    qkv: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    out: torch.Tensor,
    *,
    position: torch.Tensor,
    row: torch.Tensor,
    kv_len: torch.Tensor,
    inv_freq: torch.Tensor,
    scale: float,
    q_norm: Norm | None,
    k_norm: Norm | None,
    v_norm: Norm | None,
    value_is_key: bool,
    attention_scaling: float,
    config: DecodeAttentionConfig,
    workspace: SplitKWorkspace | None,
    pdl: bool,
) -> None:
    """Run the Triton kernels (also under the interpreter); arguments as in the entry point, `out` given."""
    _, KV, capacity, D = key_cache.shape
    H = out.shape[1]
    G = H // KV
    workspace = workspace_for(workspace, KV, G, D, config.programs_per_sm, qkv.device)
    splits = workspace.max_splits
    q_weight, q_eps, q_offset, q_on, q_has = norm_operands(q_norm, inv_freq)
    k_weight, k_eps, k_offset, k_on, k_has = norm_operands(k_norm, inv_freq)
    v_weight, v_eps, v_offset, v_on, v_has = norm_operands(v_norm, inv_freq)
    single = one_tile(capacity, splits, config.block_n, config.min_rows)
    decode_attention_kernel[(KV, splits)](
        qkv, key_cache, value_cache, position, row, kv_len, inv_freq, q_weight, k_weight, v_weight,
        workspace.part, workspace.lse,
        key_cache.stride(1), key_cache.stride(2), value_cache.stride(1), value_cache.stride(2),
        capacity, config.min_rows, scale, attention_scaling, q_eps, q_offset, k_eps, k_offset, v_eps, v_offset,
        H, KV, D // 2, max(16, triton.next_power_of_2(G + 1)), config.block_n, splits,
        config.preload, single, 0 if single and config.preload else config.prefetch_rows, value_is_key,
        q_on, q_has, k_on, k_has, v_on, v_has, "ieee" if qkv.dtype == torch.float32 else "tf32",
        not interpreting(), pdl,
        num_warps=config.num_warps, num_stages=config.num_stages, **launch_options(pdl),
    )  # fmt: skip
    launch_combine(
        workspace, out, kv_len, bound=capacity, window=None, min_rows=config.min_rows, key_heads=KV, overlap=pdl
    )
