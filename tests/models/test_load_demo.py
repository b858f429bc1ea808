"""The demo package's parts: assembled once, verified, never trusted half-written."""

import hashlib
import json
import sys
import types

import pytest

from models.errors import LoadError
from models.load import demo

CONTENT = [b"GGUF", b"part two", b""]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for the PyPI package with the same four names."""
    parts = []
    for number, content in enumerate(CONTENT):
        parts.append(tmp_path / f"part{number}")
        parts[-1].write_bytes(content)
    module = types.ModuleType(demo.PACKAGE)
    module.MODEL_NAME = "demo.gguf"
    module.EXPECTED_SHA256 = hashlib.sha256(b"".join(CONTENT)).hexdigest()
    module.chunk_paths = lambda: parts
    monkeypatch.setitem(sys.modules, demo.PACKAGE, module)
    return module


def test_assembled_once_then_known_by_its_marker(package, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    target = demo.demo_gguf(cache)
    assert target.read_bytes() == b"".join(CONTENT)
    assert sorted(file.name for file in cache.iterdir()) == ["demo.gguf", "demo.verified.json"]
    monkeypatch.setattr(demo, "_sha256", lambda path: pytest.fail("hashed again"))
    monkeypatch.setattr(package, "chunk_paths", lambda: pytest.fail("assembled again"))
    assert demo.demo_gguf(cache) == target


@pytest.mark.parametrize("damage", [b"GGUFpart twO", b"GGUF", b""])
def test_a_damaged_file_is_made_anew(package, tmp_path, damage):
    target = demo.demo_gguf(tmp_path / "cache")
    target.write_bytes(damage)
    assert demo.demo_gguf(tmp_path / "cache").read_bytes() == b"".join(CONTENT)


@pytest.mark.parametrize("marker", [b"", b"{", b"null", b'{"sha256": 1}'])
def test_a_damaged_marker_means_to_verify(package, tmp_path, marker):
    cache = tmp_path / "cache"
    target = demo.demo_gguf(cache)
    (cache / "demo.verified.json").write_bytes(marker)
    before = target.stat().st_mtime_ns
    demo.demo_gguf(cache)
    assert target.stat().st_mtime_ns == before, "a sound file is hashed, not written again"
    assert json.loads((cache / "demo.verified.json").read_text())["size"] == 12


def test_parts_that_do_not_add_up(package, tmp_path):
    package.chunk_paths()[1].write_bytes(b"part 2!!")
    with pytest.raises(LoadError, match=f"have SHA-256 .*, expected {package.EXPECTED_SHA256}"):
        demo.demo_gguf(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == [], "nothing half-written stays behind"


def test_a_missing_part_is_named(package, tmp_path):
    package.chunk_paths()[1].unlink()
    with pytest.raises(LoadError, match="part1: missing from the demo package"):
        demo.demo_gguf(tmp_path / "cache")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, demo.PACKAGE, None)
    with pytest.raises(LoadError, match=r'gemma3-270m: .*pip install "runner\[demo\]"'):
        demo.demo_gguf(tmp_path)


def test_a_cache_that_cannot_be_written(package, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(LoadError, match="cannot be written"):
        demo.demo_gguf(tmp_path / "cache")
