"""Host side of the standard kernel: grid and launch. Nothing here synchronises or allocates."""

from __future__ import annotations

import torch
import triton

from kernels.sdpa.config import StandardConfig
from kernels.sdpa.splitk import mask_operands
from kernels.sdpa.standard_kernel import standard_kernel


def launch_standard(
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
    config: StandardConfig,
) -> torch.Tensor:
    """Run the kernel on arguments that passed check_call and check_standard; writes and returns `out`."""
    B, H, L_q, D = query.shape
    K, L_kv = key.shape[1], key.shape[2]
    G = H // K
    on_device = isinstance(kv_len, torch.Tensor)
    mask, mask_kind, mask_strides = mask_operands(attn_mask, (B, H, L_q, L_kv), query)
    standard_kernel[(triton.cdiv(L_q * G, config.block_m), B * K)](
        query,
        key,
        value,
        out,
        mask,
        kv_len if on_device else query,
        L_kv if kv_len is None or on_device else kv_len,
        0 if window is None else window,
        scale,
        L_q,
        K,
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *out.stride()[:3],
        *mask_strides,
        G=G,
        D=D,
        D_PAD=triton.next_power_of_2(D),
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        HAS_KV_LEN=on_device,
        CAUSAL=is_causal or window is not None,
        WINDOWED=window is not None,
        MASK_KIND=mask_kind,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out
