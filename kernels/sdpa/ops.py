"""The attention call as torch custom operators, so that torch.compile and torch.export see one opaque node.

sdpa() itself takes this way while torch traces; eager calls go straight to the kernels. `kernel` is a name out of
kernels.sdpa.route.KERNELS, or None for the router's choice.
"""

from __future__ import annotations

import torch


@torch.library.custom_op("routing_sdpa::sdpa", mutates_args=())
def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    rows: int | None,
    kv_len: torch.Tensor | None,
    window: int | None,
    kernel: str | None,
) -> torch.Tensor:
    from kernels.sdpa.api import sdpa

    bound = rows if kv_len is None else kv_len
    result = sdpa(query, key, value, attn_mask, 0.0, is_causal, scale, kv_len=bound, window=window, route=kernel)
    return result.contiguous()


@_sdpa.register_fake
def _(query, key, value, attn_mask, is_causal, scale, rows, kv_len, window, kernel):
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.custom_op("routing_sdpa::sdpa_out", mutates_args=("out",))
def _sdpa_out(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    rows: int | None,
    kv_len: torch.Tensor | None,
    window: int | None,
    kernel: str | None,
    out: torch.Tensor,
) -> None:
    from kernels.sdpa.api import sdpa

    bound = rows if kv_len is None else kv_len
    sdpa(query, key, value, attn_mask, 0.0, is_causal, scale, kv_len=bound, window=window, route=kernel, out=out)


@_sdpa_out.register_fake
def _(query, key, value, attn_mask, is_causal, scale, rows, kv_len, window, kernel, out):
    return None


def compiled_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
    kv_len: int | torch.Tensor | None,
    window: int | None,
    kernel: str | None,
    out: torch.Tensor | None,
) -> torch.Tensor:
    """sdpa through its operators (sdpa_out when `out` is given), for use while torch traces."""
    on_device = isinstance(kv_len, torch.Tensor)
    arguments = (query, key, value, attn_mask, is_causal, scale, None if on_device else kv_len)
    if out is None:
        return _sdpa(*arguments, kv_len if on_device else None, window, kernel)
    _sdpa_out(*arguments, kv_len if on_device else None, window, kernel, out)
    return out
