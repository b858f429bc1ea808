"""The arithmetic of the timings, which themselves need a GPU."""

from __future__ import annotations

import pytest

from kernels.timing import REPLAY_US, turns_for


@pytest.mark.parametrize("replay_us", [3.0, 64.0, 999.0, 1000.0, 20_000.0])
def test_a_replay_is_never_mostly_the_launch_of_its_graph(replay_us):
    """Four calls of 16 us made a graph of 64 us, timed with its launch in it."""
    turns = turns_for(replay_us)
    assert turns * replay_us >= REPLAY_US
    assert (turns - 1) * replay_us < REPLAY_US
