"""What one attention call looks like from the host: everything a route may depend on, as plain data.

Shape letters of this package: B batch, H query heads, K key-value heads, G = H / K, L length, D head dim.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shape:
    """`L_kv` is the capacity of the key-value buffer: under a CUDA graph the host does not know how much is filled.

    `window` counts the keys a query sees, itself included; None means all. `masked`: an explicit mask is given.
    `bounded`: the call bounds the valid rows by a kv_len. `device` is the GPU's name as CUDA reports it, or "cpu".
    """

    B: int
    H: int
    K: int
    L_q: int
    L_kv: int
    D: int
    dtype: str = "bfloat16"
    causal: bool = False
    window: int | None = None
    masked: bool = False
    bounded: bool = False
    device: str = "cpu"

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.H // self.K

    @property
    def visible(self) -> int:
        """Upper bound of the keys that one query reads."""
        return self.L_kv if self.window is None else min(self.L_kv, self.window)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that one full decode step of this shape reads."""
        return 2 * self.B * self.K * self.visible * self.D * dtype_bytes(self.dtype)


def dtype_bytes(name: str) -> int:
    """Bytes of one element of the torch dtype called `name`."""
    return int(getattr(torch, name).itemsize)


@functools.cache
def device_name(device: torch.device) -> str:
    """The key under which this device's measured routes are kept."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def shape_of(
    query: torch.Tensor, key: torch.Tensor, *, is_causal: bool, window: int | None, masked: bool, bounded: bool
) -> Shape:
    """The Shape of a call on [B, H, L_q, D] queries and [B, K, L_kv, D] keys. `bounded`: the call gives a kv_len."""
    B, H, L_q, D = query.shape
    return Shape(
        B=B,
        H=H,
        K=key.shape[1],
        L_q=L_q,
        L_kv=key.shape[2],
        D=D,
        dtype=str(query.dtype).removeprefix("torch."),
        causal=is_causal,
        window=window,
        masked=masked,
        bounded=bounded,
        device=device_name(query.device),
    )
