"""Routing scaled dot-product attention: a standard kernel, split-K flash-decoding, and the router between them."""

from kernels.sdpa.api import call_shape, sdpa, sdpa_decode_splitk, sdpa_splitk, sdpa_standard, splitk_workspace
from kernels.sdpa.config import SplitKConfig, StandardConfig
from kernels.sdpa.reference import sdpa_reference
from kernels.sdpa.route import Route, route
from kernels.sdpa.shape import Shape

__all__ = [
    "Route",
    "Shape",
    "SplitKConfig",
    "StandardConfig",
    "call_shape",
    "route",
    "sdpa",
    "sdpa_decode_splitk",
    "sdpa_reference",
    "sdpa_splitk",
    "sdpa_standard",
    "splitk_workspace",
]
