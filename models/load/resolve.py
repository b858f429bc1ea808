"""From what the user typed after --model to a Source."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from models import catalog
from models.errors import LoadError, UsageError
from models.families import FAMILIES
from models.load.source import Source

LoadFormat = Literal["auto", "dummy"]
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def resolve(
    model: str, *, load_format: LoadFormat = "auto", offline: bool = False, revision: str | None = None
) -> Source:
    """Find out what `model` is and describe it; no weights are read yet.

    In this order: a directory, a file, a catalogue name (models.catalog), a hub id owner/name. `load_format="dummy"`
    takes only the config and lets fill make random weights; a catalogue name then needs no network.
    Raises UsageError for a name that is nothing of these, LoadError for a source that is not sound.
    """
    if load_format not in ("auto", "dummy"):
        raise UsageError(f"--load-format {load_format!r}: expected auto or dummy")
    path, dummy = Path(model).expanduser(), load_format == "dummy"
    if path.is_dir():
        return _dummy_of_directory(path, model) if dummy else _directory(path, model)
    if path.exists():
        return _file(path, model, dummy)
    if entry := catalog.find(model):
        if dummy:
            return _dummy_of_catalog(entry)
        if entry.demo:
            from models.load.demo import demo_gguf

            return _gguf(demo_gguf(), entry.name)
        return _hub(entry.hub_id, entry.name, dummy, offline, revision)
    if _looks_like_path(model):
        raise LoadError(f"{model}: no such file or directory")
    if _HUB_ID.fullmatch(model):
        return _hub(model, model, dummy, offline, revision)
    raise catalog.unknown_name(model)


def _looks_like_path(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or model.count("/") > 1 or "\\" in model or model.endswith((".gguf", "/"))


def _file(path: Path, model: str, dummy: bool) -> Source:
    if path.suffix.lower() in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise LoadError(f"{path}: pickle weights can run code when loaded and are refused: convert them to safetensors")
    if path.suffix.lower() == ".safetensors":
        raise LoadError(f"{path}: give the directory that holds it, with its config.json: {path.parent}")
    source = _gguf(path, model)
    return _as_dummy(source) if dummy else source


def _gguf(path: Path, name: str) -> Source:
    from models.load.gguf_source import gguf_source

    return gguf_source(path, name)


def _directory(path: Path, name: str) -> Source:
    from models.load.directory import directory_source

    return directory_source(path, name)


def _hub(hub_id: str, name: str, dummy: bool, offline: bool, revision: str | None) -> Source:
    from models.load.hub import download

    path = download(hub_id, offline=offline, revision=revision)
    return _dummy_of_directory(path, name) if dummy else _directory(path, name)


def _dummy_of_directory(path: Path, name: str) -> Source:
    from models.load.directory import read_config
    from models.load.dummy import dummy_source

    fields, family = read_config(path)
    return dummy_source(name, path, family, fields, str(path / "config.json"))


def _dummy_of_catalog(entry: catalog.CatalogEntry) -> Source:
    from models.load.dummy import dummy_source

    family = next(family for family in FAMILIES if family.name == entry.family)
    return dummy_source(entry.name, None, family, entry.config(), f"configs/{entry.name}.json")


def _as_dummy(source: Source) -> Source:
    return Source(source.name, "dummy", source.path, source.family, source.config, source.spec)
