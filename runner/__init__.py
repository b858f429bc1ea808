"""End-to-end LLM decode inference on one GPU. `from runner import Runner` is the Python API."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.api import Generation, Runner

__all__ = ["Generation", "Runner"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `python -m runner --help` does not pay for importing torch.
    if name in __all__:
        from runner import api

        return getattr(api, name)
    raise AttributeError(f"module 'runner' has no attribute {name!r}")
