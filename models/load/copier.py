"""Moving stored values to their place: straight into host memory, or through pinned buffers to a GPU.

The way to a GPU is file -> one of two pinned buffers, read by several threads -> asynchronous copy on a side stream, so
that reading and copying overlap.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from models.load.source import READ_GRAIN, StoredTensor

STAGING_BYTES = 64 << 20  # of each of the two pinned buffers
READERS = min(8, os.cpu_count() or 1)
PART_VALUES = 1 << 21  # smallest piece worth a thread of its own; a multiple of READ_GRAIN


@contextmanager
def copier_for(device: torch.device) -> Iterator[DirectCopier | PinnedCopier]:
    """The copier for places on `device`; on leaving, all it was given has arrived."""
    with ThreadPoolExecutor(READERS) as readers:
        copier = PinnedCopier(device, readers) if device.type == "cuda" else DirectCopier(readers)
        yield copier
        copier.finish()


class DirectCopier:
    """Values go from the file to their place in host memory."""

    def __init__(self, readers: ThreadPoolExecutor) -> None:
        self.readers = readers

    def copy(self, tensor: StoredTensor, place: torch.Tensor) -> None:
        _read_parts(self.readers, tensor, place, 0)

    def finish(self) -> None:
        pass


class PinnedCopier:
    """Values go through two pinned buffers: one is read into while the other is on its way to the device."""

    def __init__(self, device: torch.device, readers: ThreadPoolExecutor) -> None:
        self.readers = readers
        self.stream = torch.cuda.Stream(device)
        self.stream.wait_stream(torch.cuda.current_stream(device))  # the places may reuse memory still in use there
        self.buffers = [torch.empty(STAGING_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self.events = [torch.cuda.Event() for _ in range(2)]
        self.turn = 0

    def copy(self, tensor: StoredTensor, place: torch.Tensor) -> None:
        step = STAGING_BYTES // place.element_size() // READ_GRAIN * READ_GRAIN
        for start in range(0, place.numel(), step):
            piece = place[start : start + step]
            self.events[self.turn].synchronize()
            staged = self.buffers[self.turn].view(place.dtype)[: piece.numel()]
            _read_parts(self.readers, tensor, staged, start)
            with torch.cuda.stream(self.stream):
                piece.copy_(staged, non_blocking=True)
                self.events[self.turn].record(self.stream)
            self.turn ^= 1

    def finish(self) -> None:
        self.stream.synchronize()


def _read_parts(readers: ThreadPoolExecutor, tensor: StoredTensor, out: torch.Tensor, start: int) -> None:
    """tensor.read_into(out, start), shared out over the readers."""
    part = max(PART_VALUES, -(-out.numel() // READERS // READ_GRAIN) * READ_GRAIN)
    jobs = [readers.submit(tensor.read_into, out[at : at + part], start + at) for at in range(0, out.numel(), part)]
    for job in jobs:
        job.result()
