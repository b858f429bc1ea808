"""Lets our `kernels` package and Hugging Face's package of the same name live side by side.

transformers imports whatever is called `kernels` when a distribution of that name is installed, and expects Hugging
Face's. Two situations need care; importing this module before transformers settles both:

- Our folder is found first (a checkout): transformers must not look for Hugging Face's names in it, so its availability
  check is told no. Nothing here needs kernels from the hub.
- Hugging Face's package is found first (a development install seen from another directory): our folder joins its search
  path, so that `kernels.sdpa` and its siblings resolve.
"""

from pathlib import Path

import kernels

OUR_KERNELS = str(Path(__file__).resolve().parent.parent / "kernels")


def is_hugging_face_package() -> bool:
    """Whether the imported `kernels` is Hugging Face's (it exports get_kernel; ours exports nothing)."""
    return hasattr(kernels, "get_kernel")


def install() -> None:
    """Settle the clash for this process. Safe to call more than once."""
    if OUR_KERNELS not in kernels.__path__:
        kernels.__path__.append(OUR_KERNELS)
    if not is_hugging_face_package():
        import transformers.utils as utils
        import transformers.utils.import_utils as import_utils

        utils.is_kernels_available = import_utils.is_kernels_available = _hub_kernels_unavailable


def _hub_kernels_unavailable(*_versions: str) -> bool:
    return False


install()
