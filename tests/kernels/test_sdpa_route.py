"""The router: its built-in rule, its use of measured tables, and what it makes of a broken one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from kernels.sdpa import Route, Shape, SplitKConfig, route, sdpa, sdpa_reference
from kernels.sdpa import table as tables
from kernels.sdpa.route import KERNELS, can_run, default_config, named_route, normal
from kernels.sdpa.table import Row, Table, parse, save, table_for, versions

DECODE = Shape(B=1, H=32, K=16, L_q=1, L_kv=1024, D=256, bounded=True, device="Some GPU")
PREFILL = replace(DECODE, L_q=2401, L_kv=2401, causal=True, bounded=False)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty user cache, and routes that forget what they read before and after."""
    monkeypatch.setattr(tables, "user_path", lambda gpu: tmp_path / "routes.json")
    route.cache_clear()
    table_for.cache_clear()
    yield tmp_path / "routes.json"
    route.cache_clear()
    table_for.cache_clear()


def a_table(**origin):
    config = SplitKConfig(block_n=64)
    rows = (
        Row(DECODE, {"splitk": 8.0, "standard": 30.0, "torch_flash": 5.0}, {"splitk": config}),
        Row(replace(DECODE, L_kv=64), {"splitk": 6.0, "standard": 4.0}),
        Row(PREFILL, {"standard": 300.0, "torch_flash": 200.0}),
        Row(replace(PREFILL, window=1024), {"standard": 200.0}),
    )
    return Table("Some GPU", rows, {**versions(), **origin})


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({}, "splitk"),
        ({"L_kv": 256}, "splitk"),
        ({"L_kv": 255}, "standard"),
        ({"L_q": 2}, "standard"),
        ({"D": 96}, "standard"),
        ({"D": 72}, "reference"),
        ({"L_kv": 131072, "window": 255}, "standard"),
        ({"device": "cpu"}, "reference"),
    ],
)
def test_the_built_in_rule(cache, change, kernel):
    chosen = route(replace(DECODE, **change))
    assert chosen.kernel == kernel
    assert chosen.config == default_config(kernel, replace(DECODE, **change))
    assert "built-in rule" in chosen.why or change == {"device": "cpu"}


def test_a_measured_table_decides(cache):
    save(a_table(), cache)
    chosen = route(DECODE)
    assert (chosen.kernel, chosen.config) == ("splitk", SplitKConfig(block_n=64))  # flash cannot take a device kv_len
    assert chosen.why == "measured on Some GPU at this shape: splitk 8.0 us, standard 30.0 us"
    assert route(replace(DECODE, bounded=False)).kernel == "torch_flash"
    assert "nearest shape B1 H32/16 D256 L_q 1 L_kv 64" in route(replace(DECODE, L_kv=100)).why
    assert route(replace(DECODE, L_kv=100)).kernel == "standard"
    assert route(PREFILL).kernel == "torch_flash"
    assert route(replace(PREFILL, window=1024)).kernel == "standard"
    assert route(replace(PREFILL, L_q=100)).kernel == "standard"  # torch aligns causal masks top-left
    assert "no measured shape like this" in route(replace(DECODE, D=128)).why


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{ not json", "not a route table"),
        (json.dumps({"gpu": "Some GPU"}), "not a route table"),
        (a_table(torch="0.1").as_json(), "stale (torch 0.1 is now"),
        (a_table(kernels="feed").as_json(), "stale (kernels feed is now"),
        (replace(a_table(), gpu="Another GPU").as_json(), "measured on Another GPU"),
    ],
)
def test_a_corrupt_or_stale_table_is_not_trusted(cache, text, told):
    cache.write_text(text)
    chosen = route(DECODE)
    assert chosen.kernel == "splitk"
    assert "built-in rule" in chosen.why
    assert told in chosen.why
    assert str(cache) in chosen.why


def test_tables_survive_a_round_trip():
    assert parse(a_table(commit="abc").as_json()) == a_table(commit="abc")


def test_committed_tables_are_readable_and_name_only_what_can_run():
    paths = sorted(tables.COMMITTED.glob("*.json"))
    for path in paths:
        table = parse(path.read_text())
        assert {"torch", "triton", "kernels", "commit", "date", "command"} <= set(table.origin), path
        for row in table.rows:
            assert set(row.us) <= set(KERNELS)
            assert all(can_run(name, normal(replace(row.shape, bounded=False))) for name in row.us), row.label()


def test_a_table_of_the_same_chip_serves_and_says_so(cache, tmp_path, monkeypatch):
    save(a_table(also=["Its Sibling"]), tmp_path / "committed" / "some.json")
    monkeypatch.setattr(tables, "COMMITTED", tmp_path / "committed")
    chosen = route(replace(DECODE, device="Its Sibling"))
    assert chosen.config == SplitKConfig(block_n=64)
    assert "Its Sibling has the chip of Some GPU" in chosen.why


def test_no_table_of_ones_own_without_platformdirs(cache, monkeypatch):
    """The GPU machine of the first measurements had no platformdirs: every route failed with ModuleNotFoundError."""

    def missing(gpu):
        raise ModuleNotFoundError("No module named 'platformdirs'")

    monkeypatch.setattr(tables, "user_path", missing)
    chosen = route(DECODE)
    assert chosen.kernel == "splitk"
    assert "platformdirs is not installed" in chosen.why


def test_conditions_that_change_nothing_are_dropped():
    assert normal(replace(PREFILL, window=2401)) == PREFILL
    assert normal(replace(DECODE, causal=True)) == DECODE


def test_a_caller_may_insist_on_a_kernel(cache):
    assert named_route("standard", DECODE).why == "asked for by the caller"
    with pytest.raises(ValueError, match="cannot run"):
        named_route("torch_flash", DECODE)
    with pytest.raises(ValueError, match="knows the kernels"):
        named_route("fast", DECODE)


def test_sdpa_takes_a_route():
    q, k, v = torch.randn(1, 4, 1, 64), torch.randn(1, 2, 300, 64), torch.randn(1, 2, 300, 64)
    chosen = Route("splitk", SplitKConfig(), "a test")
    torch.testing.assert_close(sdpa(q, k, v, route=chosen), sdpa_reference(q, k, v))
    torch.testing.assert_close(sdpa(q, k, v, route="splitk"), sdpa_reference(q, k, v))
