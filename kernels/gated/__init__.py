"""Gated activation act(gate) * up."""

from kernels.gated.kernel import gated
from kernels.gated.reference import Activation

__all__ = ["Activation", "gated"]
