"""Weight formats of the matvec kernels: one frozen dataclass a format, the layout of every plane documented here.

Dense (bf16, fp16, fp32): `data` [N, K], row n holds the K weights of output n, K contiguous elements a row, rows
adjacent (stride K, 1); it may be a row slice of a packed matrix (q|k|v, gate|up). Rows must start on 16 bytes, so K *
itemsize is a multiple of 16 in every model served; other sizes work with narrower loads.

A new format adds a dataclass here, its kernel file, its twin in reference.py and its branch in `matvec` and
`matvec_gated`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DenseWeight:
    """An unquantised matrix [N, K] (bf16, fp16 or fp32), rows contiguous and adjacent."""

    data: torch.Tensor

    def __post_init__(self) -> None:
        if self.data.dim() != 2 or not self.data.is_contiguous():
            raise ValueError(
                f"DenseWeight: expected a contiguous [N, K] matrix, found shape {tuple(self.data.shape)} "
                f"with strides {self.data.stride()}"
            )

    @property
    def rows(self) -> int:
        """N, the number of outputs."""
        return self.data.shape[0]

    @property
    def cols(self) -> int:
        """K, the number of inputs."""
        return self.data.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes one product reads."""
        return self.data.numel() * self.data.element_size()


Weight = DenseWeight
