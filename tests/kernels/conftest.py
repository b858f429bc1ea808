"""Without a GPU, triton kernels run in triton's interpreter. It must be chosen before triton is imported anywhere."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

    from triton.runtime import interpreter

    _patch_tensor = interpreter._patch_lang_tensor

    def _patch_tensor_and_index(tensor, scope):
        """numpy 2.4 no longer turns one-element arrays into ints, on which triton 3.6 builds its loop bounds."""
        _patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _patch_tensor_and_index
