"""The arithmetic of the benchmarks, without a GPU: what they charge to whom, and which runs they keep."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import itertools

from models.catalog import find
from models.families import FAMILIES
from runner.work import decode_weights
from scripts.ladder import RUNGS, middle
from scripts.roofline import charge, name_parts, part_bytes


def spec_of(name: str):
    entry = find(name)
    family = next(family for family in FAMILIES if family.name == entry.family)
    return family.spec(family.text_config(entry.config()))


@pytest.mark.parametrize("name", ["gemma4-31b", "gemma3-27b", "qwen3-8b"])
def test_parts_add_up_to_the_bytes_of_a_token(name):
    spec = spec_of(name)
    for context in (1, 1000, 2401, 32768):
        expected = decode_weights(spec) * 2 + spec.kv_bytes(context, 2)
        assert sum(part_bytes(spec, context).values()) == expected


def test_gemma4_reads_what_it_is_known_to_read():
    """61.4 GB of bf16 weights, and KV of 81,920 n + 819,200 min(n, 1024) bytes at depth n."""
    spec = spec_of("gemma4-31b")
    assert decode_weights(spec) * 2 == pytest.approx(61.4e9, rel=1e-3)
    for depth in (100, 1024, 2401, 65536):
        assert spec.kv_bytes(depth, 2) == 81_920 * depth + 819_200 * min(depth, 1024)


LAYER = ["_matvec_kernel", "_qk_norm_rope_kernel", "splitk_kernel", "combine_kernel", "_matvec_kernel",
         "_sandwich_kernel", "_matvec_kernel", "_matvec_kernel", "_sandwich_kernel"]  # fmt: skip
KINDS = ["sliding", "full"]
NAMES = ["_locate_kernel", *LAYER, *LAYER, "_matvec_kernel", "argmax"]


def test_kernels_are_named_by_their_place_in_the_step():
    parts = name_parts(NAMES, KINDS)
    assert parts[0] == parts[-1] == "small"
    for first, kind in ((1, "sliding"), (10, "full")):
        attention = f"attention, {kind}"
        layer = ["qkv", "small", attention, attention, "o", "small", "gate_up", "down", "small"]
        assert parts[first : first + 9] == layer
    assert parts[-2] == "lm_head"


def test_attention_with_norms_and_rope_inside_is_attention():
    """decode_attention's launch took the place of two: counted as small, the roofline would hide what it costs."""
    fused = [name for name in LAYER if name != "_qk_norm_rope_kernel"]
    fused[fused.index("splitk_kernel")] = "decode_attention_kernel"
    parts = name_parts([*fused, "_matvec_kernel"], ["full"])
    assert parts == ["qkv", "attention, full", "attention, full", "o", "small", "gate_up", "down", "small", "lm_head"]


def test_a_step_that_is_not_fused_is_refused():
    with pytest.raises(RuntimeError, match="8 matvecs in a step of 2 layers, expected 9"):
        name_parts(NAMES[:-2], KINDS)


def test_parts_of_overlapping_kernels_add_up_to_the_step():
    """Each kernel starts 3 us before the one before it ends: no microsecond may be charged twice."""
    steps, clock = [], 0.0
    for _ in range(3):
        step = []
        for name in NAMES:
            step.append((name, clock - 3.0, clock + 7.0))
            clock += 7.0
        steps.append(step)
    times, launches, total = charge(steps, KINDS)
    assert total == pytest.approx(7.0 * len(NAMES))
    assert sum(times.values()) == pytest.approx(total)
    assert times["attention, sliding"] == times["attention, full"] == pytest.approx(7.0 * 2)
    assert launches["small"] == 2 + 3 * 2


def test_the_ladder_keeps_the_middle_runs():
    assert middle([5.0, 1.0, 9.0, 3.0, 4.0, 2.0, 8.0, 7.0, 6.0, 10.0]) == [3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert middle([2.0, 1.0]) == [1.0, 2.0]


def test_every_rung_changes_one_thing():
    steps = [set(rung.options.items()) for rung in RUNGS[3:]]
    for before, after in itertools.pairwise(steps):
        changed = {name for name, _ in before ^ after}
        assert len(changed) == 1 or changed == {"attention", "cuda_graph"}, changed
