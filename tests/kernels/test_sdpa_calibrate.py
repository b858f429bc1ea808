"""What calibration does around its timings; the timings themselves need a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.sdpa import Shape, SplitKConfig, calibrate
from kernels.sdpa.route import Route, can_run, normal
from kernels.sdpa.table import parse, versions

DECODE = Shape(B=1, H=32, K=16, L_q=1, L_kv=1024, D=256, device="Some GPU")


def test_a_row_keeps_the_best_of_every_kernel():
    slow, fast = SplitKConfig(block_n=16), SplitKConfig(block_n=32)
    found = calibrate.Measured(
        DECODE,
        {Route("splitk", slow, ""): 9.0, Route("splitk", fast, ""): 8.0, Route("torch_flash", None, ""): 12.0},
    )
    row = found.row()
    assert row.us == {"splitk": 8.0, "torch_flash": 12.0}
    assert row.configs == {"splitk": fast}


def test_among_equals_the_one_that_loses_least_on_shorter_buffers_is_taken():
    """A longer buffer's row serves few valid keys, too; a configuration beyond SLACK is not taken for that."""
    narrow, steady, slow = (SplitKConfig(block_n=n) for n in (16, 32, 64))
    routes = [Route("splitk", config, "") for config in (narrow, steady, slow)]
    found = [
        calibrate.Measured(replace(DECODE, L_kv=length), dict(zip(routes, us, strict=True)))
        for length, us in ((1024, (9.0, 6.2, 6.0)), (4096, (10.0, 10.2, 20.0)))
    ]
    other_layer = calibrate.Measured(replace(DECODE, D=128), dict(zip(routes, (1.0, 9.0, 9.0), strict=True)))
    assert found[1].row().configs["splitk"] == narrow
    row = found[1].row([*found, other_layer])
    assert row.configs["splitk"] == steady
    assert row.us["splitk"] == 10.2
    assert found[0].row(found).configs["splitk"] == slow


def test_near_the_best_the_slower_of_two_timings_counts(monkeypatch):
    lucky, steady, slow = (Route("splitk", SplitKConfig(block_n=n), "") for n in (16, 32, 64))
    timings = {lucky: [8.0, 10.0], steady: [8.5, 8.6], slow: [12.0]}
    monkeypatch.setattr(calibrate, "calls_of", lambda shape, tried, pool: tried)
    monkeypatch.setattr(calibrate, "graph_times", lambda tried, **_: [timings[tried].pop(0)])
    found = calibrate.measure(DECODE, [lucky, steady, slow], pool=None, twice=True)
    assert found.us == {lucky: 10.0, steady: 8.6, slow: 12.0}


def test_a_kernel_that_fails_is_kept_by_its_error(monkeypatch):
    def broken(*_arguments, **_options):
        raise RuntimeError("out of resources\nand a long story")

    monkeypatch.setattr(calibrate, "calls_of", broken)
    tried = Route("splitk", SplitKConfig(), "")
    found = calibrate.measure(DECODE, [tried], pool=None)
    assert found.errors == {tried: "RuntimeError: out of resources"}
    assert not found.us


def test_candidates_can_run_what_they_are_measured_on():
    shapes = calibrate.calibration_shapes("Some GPU")
    assert {shape.D for shape in shapes} == {128, 256, 512}
    assert any(shape.window for shape in shapes)
    for shape in shapes:
        routes = calibrate.candidates(shape)
        assert all(can_run(tried.kernel, normal(shape)) for tried in routes), shape
        assert any(tried.kernel == "splitk" for tried in routes) == (shape.L_q == 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(RuntimeError, match="needs an NVIDIA GPU"):
        calibrate.calibrate()


def test_it_measures_every_shape_and_stores_the_table(tmp_path, monkeypatch):
    class NoCompiler:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def ahead(self, work):
            assert work

    def measured(shape, routes, pool):
        return calibrate.Measured(shape, {tried: 1.0 + i for i, tried in enumerate(routes)})

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(calibrate, "Pool", lambda device: None)
    monkeypatch.setattr(calibrate, "Compiler", NoCompiler)
    monkeypatch.setattr(calibrate, "measure", measured)
    told: list[str] = []
    table = calibrate.calibrate(tmp_path / "deep" / "routes.json", progress=told.append)
    assert parse((tmp_path / "deep" / "routes.json").read_text()) == table
    assert len(table.rows) == len(calibrate.calibration_shapes("Some GPU"))
    assert {name: table.origin[name] for name in versions()} == versions()
    assert told[-1].startswith("wrote")
    assert not list((tmp_path / "deep").glob("*.json?*"))
