"""The clock kernels against their twins."""

from __future__ import annotations

import pytest
import torch

from kernels.clock import reference
from kernels.clock.kernel import launch_advance, launch_locate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, device=DEVICE)


@pytest.mark.parametrize("position", [0, 7, 8, 1023, 1024, 131_071])
@pytest.mark.parametrize("capacities", [(8,), (1024, 131_072), (5, 512, 1024)])
def test_locate(position: int, capacities: tuple[int, ...]) -> None:
    poison = [ints(-9), torch.full((len(capacities),), -9, device=DEVICE)]
    expected = [p.clone() for p in poison] + [poison[1].int()]
    found = [p.clone() for p in poison] + [poison[1].int()]
    reference.locate(ints(position), ints(*capacities), *expected)
    launch_locate(ints(position), ints(*capacities), *found)
    for mine, twin in zip(found, expected, strict=True):
        assert torch.equal(mine, twin)
    assert found[1].tolist() == [position % capacity for capacity in capacities]
    assert found[2].tolist() == [min(position + 1, capacity) for capacity in capacities]


@pytest.mark.parametrize(("highest", "emitted", "fed"), [(3.5, 42, 42), (float("-inf"), 42, 42), (float("nan"), -1, 0)])
def test_advance(highest: float, emitted: int, fed: int) -> None:
    for run in (reference.advance, launch_advance):
        token, position, index, out = ints(5).view(1, 1), ints(100), ints(3), ints(-9)
        top = torch.tensor([highest], device=DEVICE)
        run(ints(42), top, token, position, index, out, not_a_token=-1)
        assert [int(t) for t in (token, position, index, out)] == [fed, 101, 4, emitted]
