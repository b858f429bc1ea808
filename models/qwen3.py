"""Qwen 3, dense. The facts that surprise:

- Every layer is full attention; head_dim is 128 whatever hidden / heads says (0.6B: 1024 / 16 = 64, yet 128).
- q_norm and k_norm over each head before RoPE; no biases anywhere; two norms a layer that multiply by their weight.
- One RoPE for all layers, theta 1e6. SwiGLU with SiLU.
- The embedding is not scaled; lm_head is the embedding in 0.6B to 4B and a matrix of its own from 8B on.
- No BOS token. The chat model ends a turn with <|im_end|>, the base model a text with <|endoftext|>.

Sources: transformers models/qwen3; GGUF names and keys: llama.cpp src/models/qwen3.cpp and conversion/qwen.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from models.family import Family
from models.gguf_metadata import GGUF_BLOCKS, Metadata
from models.spec import AttentionSpec


class Qwen3(Family):
    name = "qwen3"
    model_types = ("qwen3",)
    gguf_architecture = "qwen3"
    activation = "silu"
    end_of_turn = ("<|im_end|>", "<|endoftext|>")
    gguf_blocks: ClassVar = {**GGUF_BLOCKS, "ffn_norm.weight": "post_attention_layernorm.weight"}

    def make_config(self, fields):
        from transformers import Qwen3Config

        return Qwen3Config(**fields)

    def build(self, config):
        from transformers import Qwen3ForCausalLM

        return Qwen3ForCausalLM(config)

    def layer(self, config, index: int) -> AttentionSpec:
        full = config.layer_types[index] == "full_attention"
        return AttentionSpec(
            kind="full" if full else "sliding",
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            scale=config.head_dim**-0.5,
            window=None if full else config.sliding_window,
        )

    def config_from_gguf(
        self, metadata: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], where: str = "GGUF"
    ) -> dict[str, Any]:
        read = Metadata(metadata, self.gguf_architecture, where)
        hidden, heads = read.integer("embedding_length"), read.integer("attention.head_count")
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": read.number("rope.freq_base", 10_000.0)}
        if (scaling := read.text("rope.scaling.type")) in ("yarn", "linear"):
            rope.update(rope_type=scaling, factor=read.number("rope.scaling.factor"))
            original = read.integer("rope.scaling.original_context_length", None)
            if scaling == "yarn" and original is not None:
                rope["original_max_position_embeddings"] = original
        return {
            "vocab_size": read.vocab_size(shapes),
            "hidden_size": hidden,
            "intermediate_size": read.integer("feed_forward_length"),
            "num_hidden_layers": read.layers(),
            "num_attention_heads": heads,
            "num_key_value_heads": read.integer("attention.head_count_kv", heads),
            "head_dim": read.integer("attention.key_length", hidden // heads),
            "max_position_embeddings": read.integer("context_length"),
            "rms_norm_eps": read.number("attention.layer_norm_rms_epsilon"),
            "tie_word_embeddings": "output.weight" not in shapes,
            "rope_parameters": rope,
        }


FAMILY = Qwen3()
