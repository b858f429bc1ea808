"""Matrices that one kernel reads as one, kept as row slices of one storage: q|k|v and gate|up.

Hugging Face's modules keep their own parameters, each a view; so the same bytes serve the fused layers and
the plain modules (`--fuse none`), and checkpoints fill them by their usual names.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def projection_packs(model: nn.Module) -> list[tuple[str, ...]]:
    """Names of the parameters of a causal LM to pack, in row order, one tuple a matrix."""
    packs = []
    for name, module in model.named_modules():
        for members in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
            present = [member for member in members if getattr(module, member, None) is not None]
            if len(present) > 1:
                packs.append(tuple(f"{name}.{member}.weight" for member in present))
    return packs


def packed(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The matrix [sum of rows, K] of which `weights` [rows, K] are adjacent row slices. No copy.

    Raises ValueError if they are not: then the model was not filled with `projection_packs`.
    """
    first = weights[0]
    address = first.data_ptr()
    for weight in weights:
        if not weight.is_contiguous() or weight.shape[1] != first.shape[1] or weight.data_ptr() != address:
            raise ValueError(
                f"matrices of shapes {[tuple(w.shape) for w in weights]} are not adjacent row slices of one storage"
            )
        address += weight.nbytes
    rows = sum(weight.shape[0] for weight in weights)
    return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))


def pack_in_place(model: nn.Module, packs: Sequence[tuple[str, ...]]) -> None:
    """Move the parameters of a filled model into packed storage, one pack at a time."""
    parameters = dict(model.named_parameters())
    for names in packs:
        matrix = torch.cat([parameters[name].data for name in names])
        for name, rows in zip(names, matrix.split([parameters[name].shape[0] for name in names]), strict=True):
            parameters[name].data = rows
