"""The step's bookkeeping on the device: where a token goes before the layers run, what it became after them."""

from kernels.clock.kernel import advance, locate

__all__ = ["advance", "locate"]
