"""The models this runner knows by name. Their configs ship with the package, so dummy weights need no network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from typing import Any

from models.errors import UsageError


@dataclass(frozen=True)
class CatalogEntry:
    """One known model: its family, where its weights live, and whether the demo package holds them."""

    name: str
    family: str
    hub_id: str
    demo: bool = False

    def config(self) -> dict[str, Any]:
        """The fields of models/configs/<name>.json, a Hugging Face text config."""
        return json.loads(files("models").joinpath("configs", f"{self.name}.json").read_text("utf-8"))


CATALOG: dict[str, CatalogEntry] = {
    entry.name: entry
    for entry in (
        CatalogEntry("gemma4-31b", "gemma4", "google/gemma-4-31B-it"),
        CatalogEntry("gemma3-270m", "gemma3", "google/gemma-3-270m", demo=True),
        CatalogEntry("gemma3-1b", "gemma3", "google/gemma-3-1b-it"),
        CatalogEntry("gemma3-27b", "gemma3", "google/gemma-3-27b-it"),
        CatalogEntry("qwen3-0.6b", "qwen3", "Qwen/Qwen3-0.6B"),
        CatalogEntry("qwen3-8b", "qwen3", "Qwen/Qwen3-8B"),
        CatalogEntry("qwen3-32b", "qwen3", "Qwen/Qwen3-32B"),
    )
}


def find(name: str) -> CatalogEntry | None:
    """The entry of this name, upper or lower case, hyphens or underscores."""
    return CATALOG.get(normalise(name))


def normalise(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def unknown_name(name: str) -> UsageError:
    """The error for a name that is neither here nor a path nor a hub id, with the closest known names."""
    closest = get_close_matches(normalise(name), CATALOG, n=2, cutoff=0.5)
    hint = f" Did you mean {' or '.join(closest)}?" if closest else ""
    return UsageError(
        f"--model {name!r}: no such file, directory or known model.{hint} "
        f"Known: {', '.join(CATALOG)}; or give a directory, a .gguf file or a hub id (owner/name)"
    )
