"""Where a figure comes from: what every file under scripts/results/ says about itself."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from kernels.sdpa.table import versions


def provenance() -> dict[str, Any]:
    """GPU, driver and clocks now, versions, commit, command, date. RUNNER_COMMIT stands in where there is no .git.

    Without a GPU "gpu" and "state" are None.
    """
    query = "--query-gpu=driver_version,clocks.sm,clocks.mem,temperature.gpu"
    gpu = torch.cuda.is_available()
    return dict(
        gpu=torch.cuda.get_device_name() if gpu else None,
        state=_output("nvidia-smi", query, "--format=csv,noheader") if gpu else None,
        cpu=cpu_name(),
        versions={**versions(), "python": platform.python_version()},
        commit=os.environ.get("RUNNER_COMMIT") or _output("git", "rev-parse", "--short", "HEAD"),
        command=" ".join(["python", *sys.orig_argv[1:]]),
        date=time.strftime("%Y-%m-%d"),
    )


def cpu_name() -> str:
    """The processor as Linux names it, and how many cores this process may use."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def write_result(folder: Path, name: str, body: dict[str, Any]) -> Path:
    """Write {provenance, **body} as folder/name.json and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**provenance(), **body}, indent=1) + "\n")
    return path


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
