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
from typing import Any

from models.family import Family
from models.gguf_metadata import Metadata, rename_blocks
from models.spec import AttentionSpec, ModelSpec

GGUF_BLOCK = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
GGUF_OTHER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class Qwen3(Family):
    name = "qwen3"
    model_types = ("qwen3",)
    gguf_architecture = "qwen3"
    activation = "silu"
    end_of_turn = ("<|im_end|>", "<|endoftext|>")

    def make_config(self, fields):
        from transformers import Qwen3Config

        return Qwen3Config(**fields)

    def build(self, config):
        from transformers import Qwen3ForCausalLM

        return Qwen3ForCausalLM(config)

    def spec(self, config) -> ModelSpec:
        return ModelSpec(
            family=self.name,
            layers=tuple(
                AttentionSpec(
                    kind="full" if layer_type == "full_attention" else "sliding",
                    num_heads=config.num_attention_heads,
                    num_kv_heads=config.num_key_value_heads,
                    head_dim=config.head_dim,
                    scale=config.head_dim**-0.5,
                    window=None if layer_type == "full_attention" else config.sliding_window,
                )
                for layer_type in config.layer_types
            ),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
            tied_embeddings=config.tie_word_embeddings,
        )

    def gguf_name(self, name: str) -> str | None:
        return rename_blocks(name, GGUF_BLOCK, GGUF_OTHER)

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
