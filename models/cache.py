"""Key-value caches that a captured decode step can write to.

Full attention layers keep every position; sliding-window layers keep a ring of exactly `window` rows. The order of rows
does not matter to softmax, because RoPE is applied before the cache, so decoding a ring needs no mask: only
kv_len = min(position + 1, window).

Two clocks run side by side. Prefill happens on the host's clock (`KVCaches.length`, a Python int). Decode happens on
the device's clock (`position` and what `begin_decode` derives from it), so that one captured graph serves every
position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from models.spec import AttentionSpec, ModelSpec


@dataclass(frozen=True)
class DecodeCursor:
    """Where a decode step writes and how much it reads, on the device; shared by all layers of one capacity."""

    row: torch.Tensor  # int64 [1], the row this token's key and value go to
    kv_len: torch.Tensor  # int32 [1], rows that are valid once this token is written


class LayerCache:
    """Keys and values of one attention layer, [1, K, capacity, D] each.

    `window` is None for full attention. `capacity` is the window, or the context size where that is smaller: then
    nothing ever falls out of the ring.
    """

    def __init__(self, spec: AttentionSpec, ctx_size: int, *, device: torch.device, dtype: torch.dtype):
        self.window = spec.window
        self.capacity = spec.kv_capacity(ctx_size)
        shape = (1, spec.num_kv_heads, self.capacity, spec.head_dim)
        # Zeros rather than empty, so that a mistake in kv_len shows as wrong numbers on every machine alike.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.cursor: DecodeCursor | None = None

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def write_token(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store one position, [1, K, 1, D] each, at the device's cursor."""
        assert self.cursor is not None
        self.keys.index_copy_(2, self.cursor.row, key)
        self.values.index_copy_(2, self.cursor.row, value)

    def extend(self, start: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store positions [start, start + T), [1, K, T, D] each, and return all rows that those T queries may see.

        The returned rows are in order of position and end with the new ones, so that a causal (and windowed) mask
        aligned bottom-right is the right one.
        """
        if self.window is None:
            end = start + key.shape[2]
            self.keys[:, :, start:end] = key
            self.values[:, :, start:end] = value
            return self.keys[:, :, :end], self.values[:, :, :end]
        seen = self._visible(self.keys, start, key), self._visible(self.values, start, value)
        rows = self._rows(start, key.shape[2], key.device)
        self.keys.index_copy_(2, rows, key[:, :, -rows.shape[0] :])
        self.values.index_copy_(2, rows, value[:, :, -rows.shape[0] :])
        return seen

    def _visible(self, ring: torch.Tensor, start: int, new: torch.Tensor) -> torch.Tensor:
        """Rows of earlier positions that the first new query still sees, in order of position, then the new rows."""
        assert self.window is not None
        past = min(start, self.window - 1)
        if past == 0:
            return new
        return torch.cat([ring.index_select(2, self._rows(start - past, past, new.device)), new], dim=2)

    def _rows(self, start: int, count: int, device: torch.device) -> torch.Tensor:
        """Row numbers of positions [start, start + count); of more positions than the ring holds, the last ones."""
        first = max(start, start + count - self.capacity)
        return torch.arange(first, start + count, device=device) % self.capacity


@dataclass(frozen=True)
class CacheSnapshot:
    """What `KVCaches.restore` needs to undo writes at positions [start, start + count)."""

    length: int
    position: torch.Tensor
    rows: tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], ...]  # per layer: row numbers, keys, values


class KVCaches:
    """The caches of a whole model for one sequence of at most `ctx_size` positions."""

    def __init__(self, spec: ModelSpec, ctx_size: int, *, device: torch.device, dtype: torch.dtype):
        self.ctx_size = ctx_size
        self.length = 0
        self.position = torch.zeros(1, device=device, dtype=torch.int64)
        self.layers = [LayerCache(layer, ctx_size, device=device, dtype=dtype) for layer in spec.layers]
        self._cursors: dict[int, DecodeCursor] = {}
        for cache in self.layers:
            cache.cursor = self._cursors.setdefault(
                cache.capacity,
                DecodeCursor(
                    row=torch.zeros(1, device=device, dtype=torch.int64),
                    kv_len=torch.zeros(1, device=device, dtype=torch.int32),
                ),
            )

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.layers)

    def begin_decode(self, position: torch.Tensor) -> None:
        """Set every layer's cursor for one token at `position` (int64 [1] on the device); no host sync."""
        self.position.copy_(position)
        for capacity, cursor in self._cursors.items():
            torch.remainder(position, capacity, out=cursor.row)
            cursor.kv_len.copy_((position + 1).clamp(max=capacity))

    def reset(self) -> None:
        """Forget the sequence. Rows stay as they are: kv_len keeps them from being read."""
        self.length = 0

    def snapshot(self, count: int) -> CacheSnapshot:
        """Save what the next `count` positions after `length` would overwrite."""
        saved = []
        for cache in self.layers:
            rows = cache._rows(self.length, count, cache.keys.device)
            saved.append((rows, cache.keys.index_select(2, rows), cache.values.index_select(2, rows)))
        return CacheSnapshot(self.length, self.position.clone(), tuple(saved))

    def restore(self, snapshot: CacheSnapshot) -> None:
        """Undo everything written since `snapshot`, which must cover all positions written since."""
        self.length = snapshot.length
        self.position.copy_(snapshot.position)
        for cache, (rows, keys, values) in zip(self.layers, snapshot.rows, strict=True):
            cache.keys.index_copy_(2, rows, keys)
            cache.values.index_copy_(2, rows, values)
