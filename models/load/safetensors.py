"""safetensors files, read strictly: the header is checked against the file before anything is allocated.

The format (github.com/huggingface/safetensors, README "Format"): 8 bytes of header length (little-endian), a JSON
object name -> dtype, shape, data_offsets, then the data, without holes or overlaps, to the very end of the file.
Values are read with pread, not mapped: mapped pages would count as this process's memory while a model streams by.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import LoadError
from models.load.sniff import describe

if TYPE_CHECKING:
    import torch

MAX_HEADER = 100_000_000  # the format's own limit
CHUNK_BYTES = 16 << 20  # of the temporary copy where the dtype changes

# safetensors name -> bits of a value, torch dtype. Float8 and integers are quantised weights, which need their scales.
DTYPES: dict[str, tuple[int, str]] = {
    "F32": (32, "float32"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "F64": (64, "float64"),
}
# Known to the format, with their sizes: fatal only for a tensor that the model needs (towers may hold integer buffers).
OTHER_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class SafeTensor:
    """Where one tensor lies; `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int


def read_safetensors(path: Path) -> dict[str, SafeTensor]:
    """Parse and validate the header of `path`; LoadError names what is wrong, with expected and actual bytes."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(512)
            if size < 8:
                raise LoadError(f"{path}: {size} bytes is too short for a safetensors file (8 bytes and a header)")
            (length,) = struct.unpack_from("<Q", head)
            if length > min(MAX_HEADER, size - 8):
                raise LoadError(
                    f"{path}: claims a header of {length} bytes, the file has {size}: "
                    f"truncated or not safetensors{describe(head)}"
                )
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _check(path, _parse(path, raw, head), 8 + length, size)


def read_values(path: Path, tensor: SafeTensor, out: torch.Tensor, start: int) -> None:
    """Write the tensor's values [start, start + out.numel()) into the 1-D CPU tensor `out`, converted to its dtype."""
    import torch

    stored = getattr(torch, DTYPES[tensor.dtype][1])
    at, itemsize = tensor.offset + start * stored.itemsize, stored.itemsize
    if out.dtype == stored:
        return _pread(path, tensor.name, out, at)
    step = CHUNK_BYTES // itemsize
    piece = torch.empty(min(step, out.numel()), dtype=stored)
    for done in range(0, out.numel(), step):
        part = piece[: min(step, out.numel() - done)]
        _pread(path, tensor.name, part, at + done * itemsize)
        out[done : done + part.numel()].copy_(part)


def reader(path: Path, tensor: SafeTensor) -> Any:
    """`read_values` bound to one tensor, as StoredTensor wants it."""
    return partial(read_values, path, tensor)


def _pread(path: Path, name: str, out: torch.Tensor, at: int) -> None:
    import torch

    if not out.numel():
        return
    view = memoryview(out.view(torch.uint8).numpy().data)
    try:
        with open(path, "rb", buffering=0) as file:
            while view:
                if not (count := os.preadv(file.fileno(), [view[: 1 << 30]], at)):
                    raise LoadError(
                        f"{path}: tensor {name!r} lacks {len(view)} bytes: the file shrank while it was read"
                    )
                view, at = view[count:], at + count
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parse(path: Path, raw: bytes, head: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            twice = sorted(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise LoadError(f"{path}: the header names {', '.join(twice)[:300]} twice")
        return fields

    try:
        header = json.loads(raw, object_pairs_hook=no_duplicates)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError, too
        raise LoadError(f"{path}: the header is not JSON ({str(error)[:100]}){describe(head)}") from error
    if not isinstance(header, dict):
        raise LoadError(f"{path}: the header is {type(header).__name__}, expected an object")
    header.pop("__metadata__", None)
    return header


def _check(path: Path, header: dict[str, Any], data: int, size: int) -> dict[str, SafeTensor]:
    tensors = sorted(
        (_entry(path, name, entry, size) for name, entry in header.items()), key=lambda t: (t.offset, t.nbytes)
    )
    end, last = 0, "the start"
    for tensor in tensors:
        if tensor.offset != end:
            why = "overlaps" if tensor.offset < end else "leaves a gap after"
            raise LoadError(f"{path}: tensor {tensor.name!r} at byte {tensor.offset} {why} {last}, which ends at {end}")
        end, last = tensor.offset + tensor.nbytes, repr(tensor.name)
    if data + end != size:
        why = "truncated" if data + end > size else "trailing bytes"
        raise LoadError(f"{path}: {size} bytes, expected {data + end} by its header ({why})")
    return {t.name: SafeTensor(t.name, t.shape, t.dtype, data + t.offset, t.nbytes) for t in tensors}


def _entry(path: Path, name: str, entry: Any, size: int) -> SafeTensor:
    what = f"{path}: tensor {name[:200]!r}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise LoadError(f"{what}: expected an object with dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or (dtype not in DTYPES and dtype not in OTHER_BITS):
        raise LoadError(f"{what}: unknown dtype {str(dtype)[:40]!r}, expected one of {', '.join(DTYPES)}")
    if not _whole_numbers(shape) or len(shape) > 8:
        raise LoadError(f"{what}: shape {str(shape)[:80]} is not a list of up to 8 whole numbers")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1] or offsets[1] > size:
        raise LoadError(f"{what}: data_offsets {str(offsets)[:80]} are not [begin, end] within a file of {size} bytes")
    bits = DTYPES[dtype][0] if dtype in DTYPES else OTHER_BITS[dtype]
    for dim in shape:
        bits *= dim
    if bits != 8 * (offsets[1] - offsets[0]):
        found = offsets[1] - offsets[0]
        raise LoadError(f"{what}: {dtype} {shape} needs {-(-bits // 8)} bytes, data_offsets give {found}")
    return SafeTensor(name, tuple(shape), dtype, offsets[0], offsets[1] - offsets[0])


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)
