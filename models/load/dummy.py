"""Random weights at a model's true shape, made on the device: for speed only, the text they give means nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from models.family import Family
from models.load.source import Source

STD = 0.02
_CHUNK_VALUES = 1 << 28  # bounds what normal_ may need beside the weights themselves


def fill_with_noise(places: Mapping[str, torch.Tensor], family: Family, device: torch.device, seed: int) -> None:
    """Matrices become N(0, 0.02), norms the identity, layer scalars 1: as a trained model's sizes would be, roughly."""
    generator = torch.Generator(device).manual_seed(seed)
    for name, place in places.items():
        if name.endswith("norm.weight"):
            place.fill_(0.0 if family.unit_offset_norms else 1.0)
        elif name.endswith("layer_scalar"):
            place.fill_(1.0)
        else:
            for piece in place.view(-1).split(_CHUNK_VALUES):
                piece.normal_(0.0, STD, generator=generator)


def dummy_source(name: str, path: Path | None, family: Family, fields: dict, where: str) -> Source:
    """A source of dummy weights from the fields of a config.json."""
    config = family.text_config(fields, where)
    return Source(name=name, kind="dummy", path=path, family=family, config=config, spec=family.spec(config))
