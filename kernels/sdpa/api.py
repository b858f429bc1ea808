"""The attention entry points: check, choose, run. CPU tensors take the plain-torch twin behind the same checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kernels.sdpa.checks import SPLITK_MAX_QUERIES, check_call, check_splitk, check_standard
from kernels.sdpa.config import SplitKConfig, StandardConfig
from kernels.sdpa.reference import sdpa_reference
from kernels.sdpa.route import Route, default_config, named_route
from kernels.sdpa.route import route as choose
from kernels.sdpa.shape import Shape, shape_of

if TYPE_CHECKING:
    from kernels.sdpa.splitk import SplitKWorkspace


def sdpa(
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
    route: Route | str | None = None,
    kv_len_settled: bool = False,
    out: torch.Tensor | None = None,
    workspace: SplitKWorkspace | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention on the fastest kernel known for the shape; inference only.

    Layout and semantics of torch.nn.functional.scaled_dot_product_attention, with these differences: key-value heads
    may be fewer whether or not `enable_gqa` says so; `is_causal` is aligned bottom-right (query i sees the keys up to
    kv_len - L_q + i), which is torch's rule when L_q == L_kv; it combines with `attn_mask`; a row that sees no key
    gives zeros.

    query [B, H, L_q, D], key and value [B, K, L_kv, D], K dividing H, one dtype of bfloat16, float16, float32, any
    strides with a contiguous last dimension. `attn_mask`: boolean (True = seen) or additive, broadcastable to
    [B, H, L_q, L_kv]. `scale` defaults to D ** -0.5. `kv_len`: how many key rows are valid, an int or one int32/int64
    element on the device; what lies beyond does not matter, NaN included. `window`: the query at position p sees the
    keys j with p - window < j <= p (so it implies is_causal). `route`: a Route or a kernel's name instead of the
    router's choice. `kv_len_settled`: kv_len had been written before the kernel in front of this call began, so that
    split-K under dependent launch may plan by it early. `out` [B, H, L_q, D] receives the result; `workspace`
    (splitk_workspace) makes split-K independent of other streams.

    Returns [B, H, L_q, D] in the query's dtype. Raises ValueError, naming the shapes, for a call that is not like this.
    """
    check_call(query, key, value, attn_mask, dropout_p, kv_len, window, out, scale)
    if torch.compiler.is_compiling():
        from kernels.sdpa.ops import compiled_sdpa

        name = route.kernel if isinstance(route, Route) else route
        return compiled_sdpa(query, key, value, attn_mask, is_causal, scale, kv_len, window, name, out)
    if isinstance(kv_len, int):
        key, value, attn_mask = _first_rows(key, value, attn_mask, kv_len)
        if kv_len == 0:
            return torch.zeros_like(query) if out is None else out.zero_()
        kv_len = None
    if not isinstance(route, Route):
        shape = call_shape(query, key, attn_mask, is_causal=is_causal, kv_len=kv_len, window=window)
        route = choose(shape) if route is None else named_route(route, shape)
    return run_route(
        route,
        query,
        key,
        value,
        attn_mask,
        is_causal=is_causal,
        scale=scale,
        kv_len=kv_len,
        window=window,
        kv_len_settled=kv_len_settled,
        out=out,
        workspace=workspace,
    )


def run_route(
    route: Route,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    *,
    is_causal: bool,
    scale: float | None,
    kv_len: torch.Tensor | None,
    window: int | None,
    kv_len_settled: bool = False,
    out: torch.Tensor | None = None,
    workspace: SplitKWorkspace | None = None,
) -> torch.Tensor:
    """Run checked arguments on the kernel that `route` names. Raises ValueError when that kernel cannot take them."""
    if query.device.type == "cpu" or route.kernel == "reference":
        return sdpa_reference(
            query, key, value, attn_mask, is_causal=is_causal, scale=scale, kv_len=kv_len, window=window, out=out
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if route.kernel.startswith("torch_"):
        from kernels.sdpa.torch_backends import run_torch

        if kv_len is not None or (window is not None and window < key.shape[2]):
            raise ValueError(f"route {route.kernel} takes neither a kv_len on the device nor a window")
        causal = (is_causal or window is not None) and query.shape[2] > 1
        if causal and query.shape[2] != key.shape[2]:
            raise ValueError(f"route {route.kernel} is causal only for L_q == L_kv, found {tuple(query.shape)}")
        result = run_torch(route.kernel, query, key, value, attn_mask, is_causal=causal, scale=scale)
        return result if out is None else out.copy_(result)
    if out is None:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
    if route.kernel == "splitk":
        from kernels.sdpa.splitk import launch_splitk

        check_splitk(query, key, max_queries=SPLITK_MAX_QUERIES)
        assert isinstance(route.config, SplitKConfig)
        return launch_splitk(
            query,
            key,
            value,
            out,
            attn_mask,
            is_causal=is_causal,
            scale=scale,
            kv_len=kv_len,
            window=window,
            config=route.config,
            workspace=workspace,
            kv_len_settled=kv_len_settled,
        )
    from kernels.sdpa.standard import launch_standard

    check_standard(query, key)
    assert isinstance(route.config, StandardConfig)
    return launch_standard(
        query,
        key,
        value,
        out,
        attn_mask,
        is_causal=is_causal,
        scale=scale,
        kv_len=kv_len,
        window=window,
        config=route.config,
    )


def sdpa_standard(
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
    """sdpa on the standard (flash) kernel: any L_q, head_dim a multiple of 16 up to 512. Arguments, errors as sdpa."""
    check_call(query, key, value, attn_mask, dropout_p, kv_len, window, out, scale)
    check_standard(query, key)
    return sdpa(
        query, key, value, attn_mask, 0.0, is_causal, scale, kv_len=kv_len, window=window, route="standard", out=out
    )


def sdpa_decode_splitk(
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
    workspace: SplitKWorkspace | None = None,
) -> torch.Tensor:
    """sdpa on the split-K kernel for one query: L_q == 1, head_dim a power of two up to 512. Arguments as sdpa."""
    check_call(query, key, value, attn_mask, dropout_p, kv_len, window, out, scale)
    check_splitk(query, key, max_queries=1)
    return sdpa_splitk(
        query, key, value, attn_mask, is_causal, scale, kv_len=kv_len, window=window, out=out, workspace=workspace
    )


def sdpa_splitk(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    kv_len: int | torch.Tensor | None = None,
    window: int | None = None,
    out: torch.Tensor | None = None,
    workspace: SplitKWorkspace | None = None,
) -> torch.Tensor:
    """sdpa on the split-K kernel for 1 to 8 queries, as the verification of drafted tokens needs. Arguments as sdpa."""
    check_call(query, key, value, attn_mask, 0.0, kv_len, window, out, scale)
    check_splitk(query, key, max_queries=SPLITK_MAX_QUERIES)
    return sdpa(
        query,
        key,
        value,
        attn_mask,
        0.0,
        is_causal,
        scale,
        kv_len=kv_len,
        window=window,
        route="splitk",
        out=out,
        workspace=workspace,
    )


def splitk_workspace(shape: Shape, device: torch.device, config: SplitKConfig | None = None) -> SplitKWorkspace:
    """A workspace of one's own for split-K calls of `shape` (its L_kv does not matter): one stream uses it at a time.

    `config` defaults to the one that the router would use for the shape. Needs triton.
    """
    from kernels.sdpa.splitk import make_workspace, max_splits

    if config is None:
        chosen = choose(shape).config
        config = chosen if isinstance(chosen, SplitKConfig) else None
    if config is None:
        fallback = default_config("splitk", shape)
        assert isinstance(fallback, SplitKConfig)
        config = fallback
    heads = shape.B * shape.K
    splits = max_splits(heads, config.programs_per_sm, device)
    return make_workspace(heads, shape.L_q * shape.group, shape.D, splits, device)


def call_shape(
    query: torch.Tensor,
    key: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    *,
    is_causal: bool = False,
    kv_len: int | torch.Tensor | None = None,
    window: int | None = None,
) -> Shape:
    """The Shape under which the router sees these arguments of sdpa, as reports need it."""
    return shape_of(
        query,
        key,
        is_causal=is_causal,
        window=window,
        masked=attn_mask is not None,
        bounded=isinstance(kv_len, torch.Tensor),
    )


def _first_rows(
    key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None, rows: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Views of the first `rows` key rows, and of the mask's columns for them."""
    if attn_mask is not None and attn_mask.dim() and attn_mask.shape[-1] == key.shape[2]:
        attn_mask = attn_mask[..., :rows]
    return key[:, :, :rows], value[:, :, :rows], attn_mask
