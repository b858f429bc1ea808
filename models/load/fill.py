"""Build a source's model without memory, then give every weight its place on the device and its values.

Nothing is allocated before the names and shapes of the source and the model agree; then tensor after tensor goes from
its file to its place. Peak host memory is the model in its target dtype plus a few chunks, however large
a tensor is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from models.errors import LoadError
from models.load.agree import agree
from models.load.copier import PART_VALUES, copier_for
from models.load.source import Source, StoredTensor


@dataclass(frozen=True)
class FillReport:
    """What a fill did: bytes read (or made, for dummy weights), parameters now in place, wall-clock seconds."""

    bytes: int
    parameters: int
    seconds: float


@dataclass(frozen=True)
class Slot:
    """One place in the model that holds a tensor: `getattr(module, attribute)`."""

    module: nn.Module
    attribute: str
    shape: tuple[int, ...]
    is_parameter: bool


def build_on_meta(source: Source) -> nn.Module:
    """The Hugging Face causal LM of the source in eval mode: parameters on the meta device, buffers real on the CPU.

    LoadError if Hugging Face cannot build a model of this config.
    """
    from accelerate import init_empty_weights

    try:
        with init_empty_weights(include_buffers=False):
            return source.family.build(source.config).eval()
    except Exception as error:  # a config can be well-formed and still make any of its layers raise anything
        what = f"{type(error).__name__}: {str(error)[:200]}"
        raise LoadError(f"{source.path or source.name}: no model can be built of this config: {what}") from error


def fill(
    model: nn.Module,
    source: Source,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    packs: Sequence[tuple[str, ...]] = (),
    progress: Callable[[int, int], None] | None = None,
    rename: Callable[[str], str] = lambda name: name,
    check_tensors: bool = False,
    seed: int = 0,
) -> FillReport:
    """Allocate every parameter and persistent buffer of `model` on `device` in `dtype` and fill it from `source`.

    packs: tuples of parameter names (after `rename`) whose tensors become row slices, in that order, of one storage.
    progress: called with (bytes done, bytes in all), counted as stored.
    rename: the model's parameter name -> Hugging Face's state_dict name, for models whose modules were wrapped.
    check_tensors: look for NaN and Inf in the filled weights.
    seed: of dummy weights.
    Raises LoadError naming every tensor that is missing, left over or of the wrong shape, or not finite.
    """
    started, device = time.perf_counter(), torch.device(device)
    slots = find_slots(model, rename)
    tied = _tied_names(model, source)
    wanted = {name: slot for name, slot in slots.items() if name not in tied}
    if source.kind != "dummy":
        agree(source, {name: slot.shape for name, slot in wanted.items()}, tied)
    places = _allocate(wanted, packs, device, dtype)
    if source.kind == "dummy":
        from models.load.dummy import fill_with_noise

        fill_with_noise(places, source.family, device, seed)
        done = sum(place.nbytes for place in places.values())
    else:
        _fill_from_files(places, source, tied, device, progress)
        done = source.stored_bytes
    for name, place in places.items():
        _put(wanted[name], place)
    for name, original in tied.items():
        if name in slots:
            setattr(
                slots[name].module, slots[name].attribute, getattr(wanted[original].module, wanted[original].attribute)
            )
    _move_buffers(model, device)
    if check_tensors:
        _check_finite(places, source)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return FillReport(done, sum(place.numel() for place in places.values()), time.perf_counter() - started)


def find_slots(model: nn.Module, rename: Callable[[str], str] = lambda name: name) -> dict[str, Slot]:
    """Every parameter and persistent buffer by its state_dict name."""
    slots = {}
    for prefix, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            slots[rename(f"{prefix}.{attribute}")] = Slot(module, attribute, tuple(parameter.shape), True)
        for attribute, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if attribute not in module._non_persistent_buffers_set:
                slots[rename(f"{prefix}.{attribute}")] = Slot(module, attribute, tuple(buffer.shape), False)
    return slots


def _tied_names(model: nn.Module, source: Source) -> dict[str, str]:
    """Names that share another's storage, as Hugging Face declares: {"lm_head.weight": "model.embed_tokens.weight"}."""
    declared = getattr(model, "_tied_weights_keys", None) or {}
    return dict(declared) if source.spec.tied_embeddings else {}


def _allocate(
    wanted: dict[str, Slot], packs: Sequence[tuple[str, ...]], device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    places: dict[str, torch.Tensor] = {}
    for pack in packs:
        shapes = [wanted[name].shape for name in pack]
        rows = [shape[0] for shape in shapes]
        storage = torch.empty((sum(rows), *shapes[0][1:]), dtype=dtype, device=device)
        places.update(zip(pack, storage.split(rows), strict=True))
    for name, slot in wanted.items():
        if name not in places:
            places[name] = torch.empty(slot.shape, dtype=dtype, device=device)
    return places


def _fill_from_files(
    places: dict[str, torch.Tensor],
    source: Source,
    tied: dict[str, str],
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> None:
    total, done = source.stored_bytes, 0
    seen: dict[str, str] = {}
    with copier_for(device) as copier:
        for tensor in source.stored:
            name = tied.get(tensor.name, tensor.name)
            if name in seen:  # a checkpoint that stores lm_head beside the embedding it is tied to
                copier.finish()
                _check_same(places[name], tensor, seen[name])
            else:
                copier.copy(tensor, places[name].view(-1))
            seen[name] = tensor.where
            done += tensor.nbytes
            if progress is not None:
                progress(done, total)


def _check_same(place: torch.Tensor, tensor: StoredTensor, other: str) -> None:
    flat, step = place.view(-1), PART_VALUES
    for start in range(0, flat.numel(), step):
        here = flat[start : start + step]
        stored = torch.empty(here.numel(), dtype=here.dtype)
        tensor.read_into(stored, start)
        if not torch.equal(here, stored.to(here.device)):
            raise LoadError(f"{tensor.where}: differs from {other}, to which tie_word_embeddings ties it")


def _put(slot: Slot, place: torch.Tensor) -> None:
    if slot.is_parameter:
        slot.module._parameters[slot.attribute] = nn.Parameter(place, requires_grad=False)
    else:
        slot.module._buffers[slot.attribute] = place


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    """Non-persistent buffers (RoPE frequencies, embedding scale) keep their float32."""
    for module in model.modules():
        for attribute, buffer in module._buffers.items():
            if buffer is not None and buffer.device != device:
                module._buffers[attribute] = buffer.to(device)


def _pieces(place: torch.Tensor, values: int = 1 << 26) -> Iterator[torch.Tensor]:
    flat = place.view(-1)
    for start in range(0, flat.numel(), values):
        yield flat[start : start + values]


def _check_finite(places: dict[str, torch.Tensor], source: Source) -> None:
    flags = {
        name: torch.stack([piece.isfinite().all() for piece in _pieces(place)]).all() for name, place in places.items()
    }
    if bad := [name for name, flag in flags.items() if not flag.item()]:
        raise LoadError(f"{source.path or source.name}: NaN or Inf in {', '.join(bad)}")
