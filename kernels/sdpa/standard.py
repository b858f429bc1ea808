"""Host side of the standard kernel: grid and launch. Nothing here synchronises or allocates."""

from __future__ import annotations

import functools

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.sdpa.config import StandardConfig
from kernels.sdpa.splitk import interpreting, mask_operands
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
    bound = L_kv if kv_len is None or isinstance(kv_len, torch.Tensor) else kv_len
    head_dim = triton.next_power_of_2(D)
    tma = config.tma and not on_device and takes_tma(key) and takes_tma(value)
    block = [1, 1, config.block_n, head_dim]
    mask, mask_kind, mask_strides = mask_operands(attn_mask, (B, H, L_q, L_kv), query)
    standard_kernel[(triton.cdiv(L_q * G, config.block_m), B * K)](
        query,
        _descriptor(key, bound, block) if tma else key,
        _descriptor(value, bound, block) if tma else value,
        out,
        mask,
        kv_len if on_device else query,
        bound,
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
        D_PAD=head_dim,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        HAS_KV_LEN=on_device,
        CAUSAL=is_causal or window is not None,
        WINDOWED=window is not None,
        MASK_KIND=mask_kind,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        TMA=tma,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return out


def takes_tma(x: torch.Tensor) -> bool:
    """Whether [B, K, L, D] keys or values can be read by the tensor memory accelerator: aligned, and SM90+."""
    itemsize = x.element_size()
    aligned = x.data_ptr() % 16 == 0 and all(stride * itemsize % 16 == 0 for stride in x.stride()[:3])
    return aligned and (interpreting() or (x.is_cuda and _compute_capability(x.device) >= (9, 0)))


@functools.cache
def _compute_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _descriptor(x: torch.Tensor, rows: int, block: list[int]) -> TensorDescriptor:
    """Blocks of [1, 1, BLOCK_N, D_PAD] out of the first `rows` rows; what a block has beyond them reads as zero."""
    B, K, _, D = x.shape
    return TensorDescriptor(x, [B, K, rows, D], list(x.stride()), block)
