"""The list of model families and how a source finds its own."""

from __future__ import annotations

from difflib import get_close_matches

from models.errors import LoadError
from models.family import Family
from models.gemma3 import FAMILY as GEMMA3
from models.gemma4 import FAMILY as GEMMA4
from models.qwen3 import FAMILY as QWEN3

__all__ = ["FAMILIES", "Family", "family_for_gguf", "family_for_model_type"]

FAMILIES: tuple[Family, ...] = (GEMMA4, GEMMA3, QWEN3)


def family_for_model_type(model_type: object, where: str = "config.json") -> Family:
    """The family that reads a config.json with this `model_type`; LoadError lists the supported ones."""
    known = {name: family for family in FAMILIES for name in family.model_types}
    return _look_up(model_type, known, f"{where}: model_type")


def family_for_gguf(architecture: object, where: str = "GGUF") -> Family:
    """The family of a GGUF file's `general.architecture`; LoadError lists the supported ones."""
    known = {family.gguf_architecture: family for family in FAMILIES}
    return _look_up(architecture, known, f"{where}: general.architecture")


def _look_up(name: object, known: dict[str, Family], what: str) -> Family:
    if isinstance(name, str) and name in known:
        return known[name]
    closest = get_close_matches(str(name), known, n=1)
    hint = f"; the closest is {closest[0]!r}" if closest else ""
    raise LoadError(f"{what} {str(name)[:80]!r} is not supported{hint}. Supported: {', '.join(known)}")
