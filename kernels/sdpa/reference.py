"""Attention in plain torch: the truth that the kernels are tested against, and the path that CPU tensors take.

Everything happens in fp32 and the result is rounded once. Shape letters: B batch, H query heads, K key-value heads,
G = H / K, L length, D head dim.
"""

from __future__ import annotations

import torch

from kernels.sdpa.checks import check_call


def sdpa_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    kv_len: int | torch.Tensor | None = None,
    window: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The plain-torch twin of kernels.sdpa.sdpa, with its arguments, errors and result [B, H, L_q, D]."""
    check_call(query, key, value, attn_mask, dropout_p, kv_len, window, out, scale)
    B, H, L_q, D = query.shape
    K = key.shape[1]
    filled: int | torch.Tensor
    on_host = kv_len is None or isinstance(kv_len, int) or kv_len.device.type == "cpu"
    if on_host:  # a bound that costs no synchronisation to read: drop the rows beyond it
        filled = key.shape[2] if kv_len is None else min(int(kv_len), key.shape[2])
        key, value = key[:, :, :filled], value[:, :, :filled]
        if attn_mask is not None and attn_mask.dim() and attn_mask.shape[-1] > 1:
            attn_mask = attn_mask[..., :filled]
    else:
        assert isinstance(kv_len, torch.Tensor)
        filled = kv_len.reshape(())
        rows = torch.arange(key.shape[2], device=key.device)
        value = torch.where((rows < filled)[:, None], value, 0.0)  # 0 * NaN would leak
    L_kv = key.shape[2]

    q = query.float().reshape(B, K, (H // K) * L_q, D)
    scores = (q @ key.float().transpose(-1, -2)).view(B, H, L_q, L_kv) * (D**-0.5 if scale is None else scale)
    visible = visible_keys(L_q, L_kv, filled, is_causal=is_causal, window=window, device=query.device)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        visible = visible & attn_mask
    elif attn_mask is not None:
        scores = scores + attn_mask.float()
    scores = scores.masked_fill(~visible, -torch.inf)

    # A row that sees nothing has maximum -inf; measured from 0 its weights are exp(-inf) = 0 and its output is 0.
    highest = scores.amax(-1, keepdim=True) if L_kv else scores.new_full((B, H, L_q, 1), -torch.inf)
    weights = torch.exp(scores - torch.where(highest == -torch.inf, 0.0, highest))
    total = weights.sum(-1, keepdim=True)
    weights = weights / torch.where(total == 0.0, 1.0, total)
    result = (weights.view(B, K, (H // K) * L_q, L_kv) @ value.float()).view(B, H, L_q, D).to(query.dtype)
    return result if out is None else out.copy_(result)


def visible_keys(
    L_q: int,
    L_kv: int,
    filled: int | torch.Tensor,
    *,
    is_causal: bool,
    window: int | None,
    device: torch.device,
) -> torch.Tensor:
    """Boolean [L_q, L_kv]: which keys each query sees. Query i sits at absolute position filled - L_q + i."""
    keys = torch.arange(L_kv, device=device)[None, :]
    position = filled - L_q + torch.arange(L_q, device=device)[:, None]
    visible = (keys < filled).expand(L_q, L_kv)
    if is_causal or window is not None:
        visible = visible & (keys <= position)
    if window is not None:
        visible = visible & (keys > position - window)
    return visible
