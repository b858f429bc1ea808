"""GGUF headers, read strictly: every count, length and offset is checked against the file before it is used.

The `gguf` package dequantises our values, but its reader accepts overlapping tensors, fails with numpy errors on other
faults and needs 12 s for a vocabulary of 262144 tokens. This one is linear, allocates no more than the file's bytes
justify and raises nothing but LoadError.

Format: github.com/ggml-org/ggml docs/gguf.md (version 3, little-endian; version 2 has the same layout).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import LoadError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS, MAX_NAME = 4, 64  # GGML_MAX_DIMS, GGML_MAX_NAME
MAX_KEY = 65535

# ggml type id -> name, values in a block, bytes of a block. The types whose values the `gguf` package can restore.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}
# Metadata value types: id -> struct code. 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies. `shape` is torch's order, rows first; `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufFile:
    """A validated header. `metadata` holds Python scalars, strings, numpy arrays (numbers) and lists (strings)."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Parse and validate the header of `path`; LoadError names what is wrong and where."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            if size < 24:
                raise LoadError(f"{path}: {size} bytes is too short for a GGUF header (24 bytes)")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(path, data, size).parse()
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Parser:
    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size, 0

    def fail(self, what: str) -> LoadError:
        return LoadError(f"{self.path}: {what}")

    def parse(self) -> GgufFile:
        version, tensor_count, kv_count = self._preamble()
        metadata: dict[str, Any] = {}
        for index in range(kv_count):
            key = self._string(f"the key of metadata entry {index}", MAX_KEY)
            if key in metadata:
                raise self.fail(f"duplicate metadata key {key!r}")
            metadata[key] = self._value(key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise self.fail(f"general.alignment = {alignment!r}, expected a power of two from 8 to {1 << 20}")
        splits = metadata.get("split.count", 1)
        if type(splits) is not int or splits > 1:
            raise self.fail(f"one part of a split model (split.count = {splits!r}); join it: llama-gguf-split --merge")
        infos = [self._tensor_info(index) for index in range(tensor_count)]
        return GgufFile(self.path, version, metadata, self._place(infos, alignment))

    def _preamble(self) -> tuple[int, int, int]:
        magic = bytes(self.data[:4])
        if magic != MAGIC:
            raise self.fail(f"not a GGUF file: begins with {magic!r}, expected {MAGIC!r}{_what_is(self.data)}")
        (version,) = struct.unpack_from("<I", self.data, 4)
        if version not in VERSIONS:
            swapped = int.from_bytes(self.data[4:8], "big")
            if swapped in (1, *VERSIONS):
                raise self.fail(f"big-endian GGUF (version {swapped}), expected little-endian")
            raise self.fail(f"GGUF version {version} is not supported, expected one of {VERSIONS}")
        tensor_count, kv_count = struct.unpack_from("<QQ", self.data, 8)
        self.at = 24
        # The smallest entry of each kind bounds how many the file can hold.
        self._bound(kv_count, 8 + 1 + 4 + 1, "metadata entries")
        self._bound(tensor_count, 8 + 1 + 4 + 8 + 4 + 8, "tensors")
        return version, tensor_count, kv_count

    def _bound(self, count: int, least_bytes: int, what: str) -> None:
        if count * least_bytes > self.size - self.at:
            left = self.size - self.at
            raise self.fail(f"claims {count} {what}, at least {count * least_bytes} bytes, but only {left} are left")

    def _take(self, count: int, what: str) -> int:
        """Reserve `count` bytes and return where they start."""
        start = self.at
        if count > self.size - start:
            raise self.fail(f"truncated: {what} needs {count} bytes at offset {start}, the file ends at {self.size}")
        self.at = start + count
        return start

    def _scalar(self, code: str, what: str) -> Any:
        start = self._take(struct.calcsize("<" + code), what)
        if code == "?" and self.data[start] > 1:
            raise self.fail(f"{what}: {self.data[start]} is not a bool")
        return struct.unpack_from("<" + code, self.data, start)[0]

    def _string(self, what: str, most: int | None = None) -> str:
        length = self._scalar("Q", what)
        if most is not None and not 0 < length <= most:
            raise self.fail(f"{what}: length {length}, expected 1 to {most}")
        start = self._take(length, what)
        return self._decode(bytes(self.data[start : self.at]), what)

    def _decode(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what}: not UTF-8: {raw[:40]!r}") from error

    def _value(self, key: str) -> Any:
        what = f"metadata key {key!r}"
        kind = self._scalar("I", what)
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self._string(what)
        if kind != _ARRAY:
            raise self.fail(f"{what}: unknown value type {kind}")
        kind = self._scalar("I", what)
        count = self._scalar("Q", what)
        if kind in _SCALARS:
            dtype = np.dtype("?" if _SCALARS[kind] == "?" else "<" + _SCALARS[kind])
            self._bound(count, dtype.itemsize, f"elements of {what}")
            start = self._take(count * dtype.itemsize, what)
            raw = np.frombuffer(
                self.data, np.uint8, count * dtype.itemsize, start
            ).copy()  # a view would pin the mapping
            if dtype == np.bool_ and count and raw.max() > 1:
                raise self.fail(f"{what}: {raw.max()} is not a bool")
            return raw.view(dtype)
        if kind == _STRING:
            self._bound(count, 8, f"strings of {what}")
            return self._strings(count, what)
        raise self.fail(f"{what}: arrays of value type {kind} are not supported")

    def _strings(self, count: int, what: str) -> list[str]:
        # A tokenizer has half a million of these: no method call for each.
        data, size, at, length_of = self.data, self.size, self.at, struct.Struct("<Q").unpack_from
        strings: list[str] = []
        for index in range(count):
            end = at + 8
            if end <= size:
                end += length_of(data, at)[0]
            if end > size:
                raise self.fail(f"truncated: string {index} of {what} at offset {at}, the file ends at {size}")
            try:
                strings.append(str(data[at + 8 : end], "utf-8"))
            except UnicodeDecodeError as error:
                raise self.fail(f"string {index} of {what}: not UTF-8: {data[at + 8 : end][:40]!r}") from error
            at = end
        self.at = at
        return strings

    def _tensor_info(self, index: int) -> tuple[str, tuple[int, ...], str, int, int]:
        name = self._string(f"the name of tensor {index}", MAX_NAME - 1)
        what = f"tensor {name!r}"
        dims = self._scalar("I", what)
        if not 1 <= dims <= MAX_DIMS:
            raise self.fail(f"{what}: {dims} dimensions, expected 1 to {MAX_DIMS}")
        shape = tuple(self._scalar("Q", what) for _ in range(dims))
        if 0 in shape:
            raise self.fail(f"{what}: a dimension of zero in {list(shape)}")
        kind, offset = self._scalar("I", what), self._scalar("Q", what)
        if kind not in TYPES:
            supported = ", ".join(t[0] for t in TYPES.values())
            raise self.fail(f"{what}: tensor type {kind} is unknown or not supported, expected one of {supported}")
        type_name, block, block_bytes = TYPES[kind]
        if shape[0] % block:
            raise self.fail(f"{what}: rows of {shape[0]} are not a multiple of {type_name}'s block of {block}")
        values = 1
        for dim in shape:
            values *= dim
        if (nbytes := values // block * block_bytes) > self.size:
            raise self.fail(f"{what}: shape {list(shape)} needs {nbytes} bytes, the file has {self.size}")
        return name, shape[::-1], type_name, offset, nbytes

    def _place(self, infos: list[tuple[str, tuple[int, ...], str, int, int]], alignment: int) -> dict[str, GgufTensor]:
        # As llama.cpp demands: tensors lie in the order of their entries, each at the next aligned offset.
        start = _align(self.at, alignment)
        expected = 0
        tensors: dict[str, GgufTensor] = {}
        for name, shape, type_name, offset, nbytes in infos:
            if name in tensors:
                raise self.fail(f"duplicate tensor {name!r}")
            if offset != expected:
                why = (
                    "misaligned"
                    if offset % alignment
                    else "overlapping or out of order"
                    if offset < expected
                    else "a gap"
                )
                raise self.fail(f"tensor {name!r}: offset {offset}, expected {expected} ({why})")
            if start + offset + nbytes > self.size:
                ends = start + offset + nbytes
                raise self.fail(f"truncated: tensor {name!r} ends at byte {ends}, the file has {self.size}")
            tensors[name] = GgufTensor(name, shape, type_name, start + offset, nbytes)
            expected = _align(offset + nbytes, alignment)
        return tensors


def _align(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _what_is(data: mmap.mmap) -> str:
    from models.load.sniff import describe

    return describe(bytes(data[:512]))
