"""Matrix-vector products of the decode step."""

from kernels.matvec.configs import MatvecConfig, config_for
from kernels.matvec.formats import DenseWeight, Weight
from kernels.matvec.matmul import matmul
from kernels.matvec.matvec import matvec, matvec_gated

__all__ = ["DenseWeight", "MatvecConfig", "Weight", "config_for", "matmul", "matvec", "matvec_gated"]
