"""Routing scaled dot-product attention: a standard kernel, split-K flash-decoding, and the router between them."""

from kernels.sdpa.api import sdpa
from kernels.sdpa.reference import sdpa_reference

__all__ = ["sdpa", "sdpa_reference"]
