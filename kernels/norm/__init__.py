"""RMSNorm and the sandwich of norm, residual and norm."""

from kernels.norm.rms_norm import rms_norm
from kernels.norm.sandwich import sandwich
from kernels.norm.spec import Norm

__all__ = ["Norm", "rms_norm", "sandwich"]
