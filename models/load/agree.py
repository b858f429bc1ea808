"""Whether a source holds exactly the tensors that a model wants, told for all of them at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from models.errors import LoadError
from models.load.source import Source


def agree(source: Source, wanted: Mapping[str, tuple[int, ...]], tied: Mapping[str, str]) -> None:
    """LoadError naming every tensor that is missing, left over, stored twice or of the wrong shape.

    wanted: state_dict name -> shape. tied: further names that the source may hold -> the wanted name they share.
    """
    faults: list[str] = []
    seen: dict[str, str] = {}
    for tensor in source.stored:
        name = tied.get(tensor.name, tensor.name)
        if tensor.name in seen:
            faults.append(f"stored twice: {tensor.name} ({tensor.where} and {seen[tensor.name]})")
        seen[tensor.name] = tensor.where
        if name in wanted and tensor.shape != wanted[name]:
            faults.append(f"wrong shape: {tensor.name} is {list(tensor.shape)}, expected {list(wanted[name])}")
    present = {tied.get(name, name) for name in seen}
    if missing := [name for name in wanted if name not in present]:
        faults.append(f"missing: {summarise(missing)}")
    if extra := [name for name in seen if tied.get(name, name) not in wanted]:
        faults.append(f"not part of a {source.family.name} model: {summarise(extra)}")
    if faults:
        raise LoadError(f"{source.path}: the tensors do not fit the model\n  " + "\n  ".join(faults))


def summarise(names: Iterable[str]) -> str:
    """All the names, layers drawn together: `model.layers.{0-17}.mlp.up_proj.weight`."""
    layers: dict[str, list[int]] = {}
    for name in names:
        match = re.search(r"(?<=layers\.)\d+", name)
        pattern = name[: match.start()] + "{}" + name[match.end() :] if match else name
        layers.setdefault(pattern, []).extend([int(match[0])] if match else [])
    return ", ".join(
        pattern.replace("{}", _ranges(numbers)) if numbers else pattern for pattern, numbers in layers.items()
    )


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return text if len(numbers) == 1 else "{" + text + "}"
