"""Ring and flat caches against the obvious: keep everything, then slice."""

from __future__ import annotations

import pytest
import torch

from models.cache import Chunk, KVCaches, LayerCache
from models.spec import AttentionSpec, ModelSpec

WINDOW, CTX, HEADS, DIM = 5, 23, 2, 4


def spec() -> ModelSpec:
    layers = (
        AttentionSpec("sliding", HEADS, HEADS, DIM, 1.0, window=WINDOW),
        AttentionSpec("full", HEADS, HEADS, DIM, 1.0),
    )
    return ModelSpec("test", layers, 8, 8, 8, CTX, tied_embeddings=True)


def caches() -> KVCaches:
    made = KVCaches(spec(), CTX, device=torch.device("cpu"), dtype=torch.float32)
    for cache in made.layers:  # a row that nobody wrote must never be seen
        cache.keys.fill_(float("nan"))
        cache.values.fill_(float("nan"))
    return made


def extend(cache: LayerCache, start: int, keys: torch.Tensor, values: torch.Tensor) -> Chunk:
    chunk = cache.open_chunk(start, keys.shape[2])
    chunk.keys[:, :, chunk.first_row :] = keys
    chunk.values[:, :, chunk.first_row :] = values
    cache.close_chunk(chunk)
    return chunk


def history(count: int) -> torch.Tensor:
    return torch.randn(1, HEADS, count, DIM, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("chunks", [[23], [1, 1, 1, 20], [4, 5, 6, 8], [5, 5, 5, 5, 3], [7, 16], [2, 21]])
def test_prefill_sees_exactly_its_window(chunks):
    made, keys = caches(), history(CTX)
    start = 0
    for count in chunks:
        new = keys[:, :, start : start + count]
        sliding, full = (extend(cache, start, new, -new) for cache in made.layers)
        end = start + count
        assert torch.equal(sliding.keys, keys[:, :, max(0, start - WINDOW + 1) : end])
        assert torch.equal(full.keys, keys[:, :, :end])
        assert torch.equal(full.values, -keys[:, :, :end])
        start = end


@pytest.mark.parametrize("prefilled", [0, 3, 5, 6, 12])
def test_decode_reads_the_last_window_rows(prefilled):
    made, keys = caches(), history(CTX)
    if prefilled:
        for cache in made.layers:
            extend(cache, 0, keys[:, :, :prefilled], keys[:, :, :prefilled])
    for position in range(prefilled, CTX):
        made.begin_decode(torch.tensor([position]))
        token = keys[:, :, position : position + 1]
        for cache, expected in zip(
            made.layers,
            (keys[:, :, max(0, position - WINDOW + 1) : position + 1], keys[:, :, : position + 1]),
            strict=True,
        ):
            cache.write_token(token, token)
            valid = int(cache.cursor.kv_len)
            assert valid == expected.shape[2]
            # A ring's rows stand in any order; softmax does not mind, so compare them as sets.
            assert_same_rows(cache.keys[0, 0, :valid], expected[0, 0])


def assert_same_rows(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))


@pytest.mark.parametrize("length", [0, 4, 5, 17, 21])
def test_restore_undoes_every_write(length):
    made, keys = caches(), history(CTX)
    for cache in made.layers:
        cache.keys.normal_()
        cache.values.normal_()
    made.length = length
    before = [(cache.keys.clone(), cache.values.clone()) for cache in made.layers]
    saved = made.snapshot(count=2)
    for position in (length, length + 1):
        made.begin_decode(torch.tensor([position]))
        for cache in made.layers:
            cache.write_token(keys[:, :, :1], keys[:, :, :1])
    assert not all(torch.equal(c.keys, k) for c, (k, _) in zip(made.layers, before, strict=True))
    made.restore(saved)
    for cache, (old_keys, old_values) in zip(made.layers, before, strict=True):
        assert torch.equal(cache.keys, old_keys)
        assert torch.equal(cache.values, old_values)
    assert made.length == length


def test_bytes_are_what_the_spec_says():
    made = caches()
    expected = sum(layer.kv_capacity(CTX) * layer.kv_row_bytes(4) for layer in spec().layers)
    assert made.nbytes == expected == spec().kv_bytes(CTX, 4)
