"""What a file that is not what its name says really is, told by its first bytes."""

from __future__ import annotations


def describe(head: bytes) -> str:
    """A clause to append to an error message, empty if these first bytes say nothing.

    Git LFS pointers begin with a fixed version line (git-lfs docs/spec.md).
    """
    start = head.lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "; this is a Git LFS pointer, not the weights: run `git lfs pull` or download the file itself"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "; this is an HTML page saved in place of the weights: download the file itself"
    if start.startswith((b"pk\x03\x04", b"\x80\x02", b"\x80\x04")):
        return "; this looks like a pickle (PyTorch .bin), which can run code when loaded: use safetensors"
    if start.startswith(b"gguf"):
        return "; this is a GGUF file: give its path with the ending .gguf"
    return ""
