"""GGUF values: from packed blocks on disk to a tensor, a few rows at a time.

The formulas of every block format are those of the `gguf` package (gguf/quants.py), which is the reference.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from models.errors import LoadError
from models.load.gguf import TYPES, GgufTensor

CHUNK_VALUES = 1 << 22  # 16 MiB as float32: the only full-width copy that ever exists
_BLOCKS = {name: (block, nbytes) for name, block, nbytes in TYPES.values()}
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_values(path: Path, tensor: GgufTensor, out: torch.Tensor, start: int) -> None:
    """Write the tensor's values [start, start + out.numel()) into the 1-D CPU tensor `out`, converted to its dtype.

    Both ends lie on block boundaries: multiples of 256 (models.load.source.READ_GRAIN), or the tensor's end.
    """
    plain = _PLAIN.get(tensor.type_name)
    block, block_bytes = _BLOCKS[tensor.type_name]
    step = CHUNK_VALUES // block * block
    for at in range(0, out.numel(), step):
        count = min(step, out.numel() - at)
        raw = _read(path, tensor, (start + at) // block * block_bytes, count // block * block_bytes)
        if plain is not None:
            out[at : at + count] = torch.from_numpy(raw).view(plain)
        else:
            out[at : at + count] = torch.from_numpy(_blocks_to_float(raw, tensor.type_name))


def _blocks_to_float(raw: np.ndarray, type_name: str) -> np.ndarray:
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(invalid="ignore"):  # NaN scales are the caller's to report (check_tensors), not numpy's
        return dequantize(raw, GGMLQuantizationType[type_name]).reshape(-1)


def _read(path: Path, tensor: GgufTensor, start: int, nbytes: int) -> np.ndarray:
    # Plain reads, not a mapping: mapped pages would count as this process's memory while a whole model streams by.
    try:
        raw = np.fromfile(path, np.uint8, nbytes, offset=tensor.offset + start)
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror or error}") from error
    if raw.size != nbytes:
        raise LoadError(
            f"{path}: tensor {tensor.name!r} has {raw.size} of {nbytes} bytes: the file shrank while it was read"
        )
    return raw
