"""Gemma 4, dense text part (the 31B shape). The facts that surprise:

- Five sliding layers, then one full one; the last layer is always full. The window of 1024 counts the position itself.
- Two attention shapes in one model: sliding 16 kv heads x 256, full 4 kv heads x 512, both under 32 query heads.
- Full layers have no v_proj (attention_k_eq_v): the value is k_proj's output through a weightless v_norm.
- Attention scale 1.0: q_norm and k_norm carry it. Logits are soft-capped at 30.
- RoPE: sliding theta 1e4 over all of head_dim; full theta 1e6 "proportional": a quarter of the pairs turn.
- Four norms a layer; a norm multiplies by its weight as stored (not 1 + weight, unlike Gemma 3).
- Every layer ends with `hidden *= layer_scalar`, a persistent buffer of one element, not a parameter.
- The embedding is multiplied by sqrt(hidden_size), rounded to the weight's dtype; lm_head is the embedding.
- The released checkpoints are Gemma4ForConditionalGeneration. Not here: per-layer inputs, shared kv (E2B, E4B), MoE.

Sources: transformers models/gemma4; GGUF names and keys: llama.cpp src/models/gemma4.cpp and conversion/gemma.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from models.family import Family
from models.gguf_metadata import GGUF_BLOCKS, GGUF_OTHERS, GGUF_SANDWICH, Metadata
from models.spec import AttentionSpec

_TOWERS = re.compile(r"(model\.)?(vision_tower|audio_tower|embed_vision|embed_audio|multi_modal_projector)\.")
_TEXT_PREFIX = re.compile(r"^(model\.language_model\.|language_model\.model\.)")


def multimodal_checkpoint_name(name: str) -> str | None:
    """Names of a ForConditionalGeneration checkpoint, new or old prefix; None for the vision and audio towers."""
    if _TOWERS.match(name) or name.endswith("rotary_emb.inv_freq"):
        return None
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return _TEXT_PREFIX.sub("model.", name)


class Gemma4(Family):
    name = "gemma4"
    model_types = ("gemma4", "gemma4_text")
    gguf_architecture = "gemma4"
    activation = "gelu_pytorch_tanh"
    sandwich_norms = True
    end_of_turn = ("<turn|>", "<eos>")
    gguf_blocks: ClassVar = {**GGUF_BLOCKS, **GGUF_SANDWICH, "layer_output_scale.weight": "layer_scalar"}
    # rope_freqs is llama.cpp's way to say "proportional": 1 where rotated, 1e30 where not
    gguf_others: ClassVar = {**GGUF_OTHERS, "rope_freqs.weight": None}
    unsupported: ClassVar = {
        "enable_moe_block": bool,
        "hidden_size_per_layer_input": bool,
        "num_kv_shared_layers": bool,
        "use_double_wide_mlp": bool,
        "use_bidirectional_attention": lambda value: value not in (None, "vision"),  # "vision" leaves text causal
    }

    def make_config(self, fields):
        from transformers import Gemma4TextConfig

        # Absent means 256 to Hugging Face: a text config without per-layer inputs has to say so.
        return Gemma4TextConfig(**{"hidden_size_per_layer_input": 0, **fields})

    def build(self, config):
        from transformers import Gemma4ForCausalLM

        return Gemma4ForCausalLM(config)

    def layer(self, config, index: int) -> AttentionSpec:
        own, full = config.per_layer_config[index], config.layer_types[index] == "full_attention"
        return AttentionSpec(
            kind="full" if full else "sliding",
            num_heads=config.num_attention_heads,
            num_kv_heads=own.num_key_value_heads,
            head_dim=own.head_dim,
            scale=1.0,
            window=None if full else config.sliding_window,
            value_is_key=full and config.attention_k_eq_v,
        )

    def checkpoint_name(self, name: str) -> str | None:
        return multimodal_checkpoint_name(name)

    def config_from_gguf(
        self, metadata: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], where: str = "GGUF"
    ) -> dict[str, Any]:
        read = Metadata(metadata, self.gguf_architecture, where)
        read.refuse("attention.shared_kv_layers", "embedding_length_per_layer_input", "expert_count")
        layers = read.layers()
        sliding = [bool(v) for v in read.per_layer("attention.sliding_window_pattern", layers)]
        kv_heads = read.per_layer("attention.head_count_kv", layers)
        head_dim = read.integer("attention.key_length")
        first_full = sliding.index(False) if False in sliding else layers - 1
        kv_sliding = kv_heads[sliding.index(True)] if True in sliding else kv_heads[0]
        return {
            "vocab_size": read.vocab_size(shapes),
            "hidden_size": read.integer("embedding_length"),
            "intermediate_size": read.per_layer("feed_forward_length", layers)[0],
            "num_hidden_layers": layers,
            "num_attention_heads": read.per_layer("attention.head_count", layers)[0],
            "num_key_value_heads": kv_sliding,
            "num_global_key_value_heads": kv_heads[first_full],
            "head_dim": read.integer("attention.key_length_swa", head_dim),
            "global_head_dim": head_dim,
            "attention_k_eq_v": f"blk.{first_full}.attn_v.weight" not in shapes,
            "hidden_size_per_layer_input": 0,
            "sliding_window": read.integer("attention.sliding_window"),
            "layer_types": ["sliding_attention" if s else "full_attention" for s in sliding],
            "max_position_embeddings": read.integer("context_length"),
            "rms_norm_eps": read.number("attention.layer_norm_rms_epsilon"),
            "final_logit_softcapping": read.number("final_logit_softcapping", None),
            "tie_word_embeddings": "output.weight" not in shapes,
            "rope_parameters": {
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": read.number("rope.freq_base_swa", 10_000.0),
                },
                "full_attention": {
                    "rope_type": "proportional",
                    "partial_rotary_factor": 0.25,
                    "rope_theta": read.number("rope.freq_base", 1_000_000.0),
                },
            },
        }


FAMILY = Gemma4()
