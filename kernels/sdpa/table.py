"""Measured tables of routes: committed ones beside this file, and the user's own from `python -m runner calibrate`.

A table is one JSON file: gpu, also (names of GPUs with the same chip), torch, triton, kernels (hash of the kernel
sources), commit, date, command, rows. A row holds a shape, the microseconds that each kernel took under CUDA-graph
timing with a cold L2, and the best configuration of each of ours. A user's table is used only if it was measured with
these very versions and kernels; anything else is ignored, and the route says so.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kernels.sdpa.config import SplitKConfig, StandardConfig
from kernels.sdpa.shape import Shape

HERE = Path(__file__).parent
COMMITTED = HERE / "routes"
_HASHED = ("config.py", "splitk.py", "splitk_kernels.py", "standard.py", "standard_kernel.py")
_CONFIGS: dict[str, type[SplitKConfig] | type[StandardConfig]] = {"splitk": SplitKConfig, "standard": StandardConfig}


@dataclass(frozen=True)
class Row:
    """One measured shape. `us`: kernel name -> microseconds; `configs`: our kernels' best configurations."""

    shape: Shape
    us: Mapping[str, float]
    configs: Mapping[str, SplitKConfig | StandardConfig] = field(default_factory=dict)

    def label(self) -> str:
        """The shape in a few characters, for `why`."""
        s = self.shape
        window = "" if s.window is None else f" window {s.window}"
        return f"B{s.B} H{s.H}/{s.K} D{s.D} L_q {s.L_q} L_kv {s.L_kv}{window}"


@dataclass(frozen=True)
class Table:
    """All measured rows of one GPU and where they come from (`origin`: versions, kernels, commit, date, command)."""

    gpu: str
    rows: tuple[Row, ...]
    origin: Mapping[str, Any]

    def as_json(self) -> str:
        """The file's text: one row a line, so that differences read well."""
        rows = ",\n".join("  " + json.dumps(_row_to_dict(row)) for row in self.rows)
        head = json.dumps({"gpu": self.gpu, **self.origin}, indent=1)
        return f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'


def _row_to_dict(row: Row) -> dict[str, Any]:
    configs = {name: asdict(config) for name, config in row.configs.items()}
    shape = {name: value for name, value in asdict(row.shape).items() if name != "device"}
    return {"shape": shape, "us": dict(row.us), "configs": configs}


def parse(text: str) -> Table:
    """A table from its JSON text. Raises ValueError (json's own included), KeyError or TypeError when it is not one."""
    data = json.loads(text)
    rows = tuple(
        Row(
            shape=Shape(**row["shape"], device=data["gpu"]),
            us={str(name): float(us) for name, us in row["us"].items()},
            configs={name: _CONFIGS[name](**config) for name, config in row["configs"].items()},
        )
        for row in data["rows"]
    )
    return Table(data["gpu"], rows, {name: data[name] for name in data if name not in ("gpu", "rows")})


@functools.cache
def kernels_hash() -> str:
    """Changes when a kernel, its host side or its configuration's meaning does: old measurements are then void."""
    digest = hashlib.sha256()
    for name in _HASHED:
        digest.update((HERE / name).read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """What a user's table must have been measured with."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    return {"torch": torch.__version__, "triton": triton, "kernels": kernels_hash()}


def user_path(gpu: str) -> Path:
    """Where the user's own table of this GPU lives."""
    import platformdirs

    slug = "".join(c if c.isalnum() else "-" for c in gpu.lower())
    return Path(platformdirs.user_cache_dir("routing-sdpa")) / f"routes-{slug}.json"


@functools.cache
def table_for(gpu: str) -> tuple[Table | None, tuple[str, ...]]:
    """The table to use for this GPU, or None, and notes on what was found and not used."""
    notes: list[str] = []
    try:
        own: Path | None = user_path(gpu)
    except ImportError:
        own = None
        notes.append("no table of yours: platformdirs is not installed")
    if own is not None and own.exists():
        try:
            table = parse(own.read_text())
        except (ValueError, KeyError, TypeError) as error:
            notes.append(f"ignored {own}: not a route table ({error}); run `python -m runner calibrate` again")
        else:
            stale = [
                f"{name} {table.origin.get(name)} is now {now}"
                for name, now in versions().items()
                if table.origin.get(name) != now
            ]
            if table.gpu == gpu and not stale:
                return table, ()
            reason = "; ".join(stale) or f"measured on {table.gpu}"
            notes.append(f"ignored {own}: stale ({reason}); run `python -m runner calibrate` again")
    for path in sorted(COMMITTED.glob("*.json")):
        table = parse(path.read_text())
        if gpu == table.gpu:
            return table, tuple(notes)
        if gpu in table.origin.get("also", ()):
            return table, (f"{gpu} has the chip of {table.gpu}", *notes)
    return None, tuple(notes)


def save(table: Table, path: Path) -> None:
    """Write a table in one step: a reader finds the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(table.as_json())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    table_for.cache_clear()
