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

from kernels.clock import locate
from models.spec import AttentionSpec, ModelSpec


@dataclass(frozen=True)
class DecodeCursor:
    """Where a decode step writes and how much it reads, on the device; shared by all layers of one capacity."""

    row: torch.Tensor  # int64 [1], the row this token's key and value go to
    kv_len: torch.Tensor  # int32 [1], rows that are valid once this token is written


@dataclass(frozen=True)
class Chunk:
    """Keys and values [1, K, rows, D] that the queries of a prefill chunk see; its own start at `first_row`."""

    start: int
    count: int
    keys: torch.Tensor
    values: torch.Tensor
    first_row: int


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

    def open_chunk(self, start: int, count: int) -> Chunk:
        """Rows for positions [start, start + count) of a prefill, behind all earlier rows that its queries may see.

        The rows are in order of position, so that a causal (and windowed) mask aligned bottom-right is the right one.
        The caller writes the new rows; `close_chunk` keeps them. A flat cache hands out its own memory.
        """
        if self.window is None:
            end = start + count
            return Chunk(start, count, self.keys[:, :, :end], self.values[:, :, :end], first_row=start)
        past = min(start, self.window - 1)
        shape = (1, self.keys.shape[1], past + count, self.keys.shape[3])
        keys, values = self.keys.new_empty(shape), self.values.new_empty(shape)
        if past:
            rows = self._rows(start - past, past, self.keys.device)
            keys[:, :, :past] = self.keys.index_select(2, rows)
            values[:, :, :past] = self.values.index_select(2, rows)
        return Chunk(start, count, keys, values, first_row=past)

    def close_chunk(self, chunk: Chunk) -> None:
        """Keep the chunk's new rows: of more than a ring holds, the last ones."""
        if self.window is None:
            return
        rows = self._rows(chunk.start, chunk.count, self.keys.device)
        self.keys.index_copy_(2, rows, chunk.keys[:, :, -rows.shape[0] :])
        self.values.index_copy_(2, rows, chunk.values[:, :, -rows.shape[0] :])

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
        capacities = sorted({cache.capacity for cache in self.layers})
        self._capacities = torch.tensor(capacities, device=device, dtype=torch.int64)
        self._rows = torch.zeros(len(capacities), device=device, dtype=torch.int64)
        self._kv_lens = torch.zeros(len(capacities), device=device, dtype=torch.int32)
        for cache in self.layers:
            here = slice(place := capacities.index(cache.capacity), place + 1)
            cache.cursor = DecodeCursor(row=self._rows[here], kv_len=self._kv_lens[here])

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.layers)

    def begin_decode(self, position: torch.Tensor) -> None:
        """Set the device's clock to `position` (int64 [1] on the device), and every layer's cursor; no host sync."""
        locate(position, self._capacities, self.position, self._rows, self._kv_lens)

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
