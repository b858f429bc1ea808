"""Everything between the q|k|v product and the output product of one decoded token: norms, RoPE, cache, split-K."""

from kernels.decode_attention.config import DecodeAttentionConfig, config_for
from kernels.decode_attention.entry import decode_attention

__all__ = ["DecodeAttentionConfig", "config_for", "decode_attention"]
