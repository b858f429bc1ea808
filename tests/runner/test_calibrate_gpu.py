"""`python -m runner calibrate` on a GPU, into a cache of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.sdpa.calibrate import calibration_shapes
from kernels.sdpa.table import parse, versions

pytestmark = pytest.mark.gpu


def test_it_measures_this_gpu_and_the_next_run_uses_the_table(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "runner", "calibrate", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    path = Path(said["path"])
    assert path.is_relative_to(tmp_path)
    table = parse(path.read_text())
    assert table.gpu == said["gpu"] == torch.cuda.get_device_name()
    assert {row.shape for row in table.rows} == set(calibration_shapes(table.gpu))
    assert {name: table.origin[name] for name in versions()} == versions()
    asks = "import sys, kernels.sdpa as s; print(s.route(s.Shape(1, 32, 16, 1, 1024, 256, device=sys.argv[1])).why)"
    told = subprocess.run(
        [sys.executable, "-c", asks, table.gpu], env=environment, capture_output=True, text=True, check=True
    )
    row = next(row for row in table.rows if (row.shape.H, row.shape.D, row.shape.L_kv) == (32, 256, 1024))
    assert f"splitk {row.us['splitk']:.1f} us" in told.stdout
