"""Gemma 3, text part. The facts that surprise:

- Five sliding layers, then one full one (every sixth layer is full, a short last group ends sliding).
- The window counts the position itself: 512 in the small models, 1024 from 4B on.
- Attention scale is query_pre_attn_scalar ** -0.5: head_dim for all but the 27B, where it is hidden / heads = 168.
- RoPE: sliding layers theta 1e4, full layers theta 1e6, and from 4B on linear scaling by 8 on the full layers only.
- Four norms a layer plus q_norm, k_norm; a norm multiplies by 1 + weight (GGUF stores the sum, safetensors the weight).
- The embedding is multiplied by sqrt(hidden_size), rounded to the weight's dtype; lm_head is the embedding.
- From 4B on the released checkpoints are Gemma3ForConditionalGeneration; their embedding has 262208 rows, 64 unused.

Sources: transformers models/gemma3; GGUF names and keys: llama.cpp src/models/gemma3.cpp and conversion/gemma.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from models.family import Family
from models.gemma4 import multimodal_checkpoint_name
from models.gguf_metadata import GGUF_BLOCKS, GGUF_SANDWICH, Metadata
from models.spec import AttentionSpec

_LAYERS_OF_27B = (
    62  # the one size whose scale is not head_dim ** -0.5; GGUF has no key for it (llama.cpp goes by depth, too)
)


class Gemma3(Family):
    name = "gemma3"
    model_types = ("gemma3", "gemma3_text")
    gguf_architecture = "gemma3"
    activation = "gelu_pytorch_tanh"
    end_of_turn = ("<end_of_turn>", "<eos>")
    unit_offset_norms = True
    sandwich_norms = True
    gguf_blocks: ClassVar = {**GGUF_BLOCKS, **GGUF_SANDWICH}
    unsupported: ClassVar = {"use_bidirectional_attention": bool}

    def make_config(self, fields):
        from transformers import Gemma3TextConfig

        return Gemma3TextConfig(**fields)

    def build(self, config):
        from transformers import Gemma3ForCausalLM

        return Gemma3ForCausalLM(config)

    def layer(self, config, index: int) -> AttentionSpec:
        full = config.layer_types[index] == "full_attention"
        return AttentionSpec(
            kind="full" if full else "sliding",
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            scale=config.query_pre_attn_scalar**-0.5,
            window=None if full else config.sliding_window,
        )

    def checkpoint_name(self, name: str) -> str | None:
        return multimodal_checkpoint_name(name)

    def config_from_gguf(
        self, metadata: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], where: str = "GGUF"
    ) -> dict[str, Any]:
        read = Metadata(metadata, self.gguf_architecture, where)
        layers, hidden = read.layers(), read.integer("embedding_length")
        heads, head_dim = read.integer("attention.head_count"), read.integer("attention.key_length", 256)
        # A number is a period (as llama.cpp reads it); a list says for every layer whether it slides.
        if read.has_number("attention.sliding_window_pattern"):
            period = read.integer("attention.sliding_window_pattern")
            sliding = [bool((i + 1) % period) for i in range(layers)]
        else:
            given = read.per_layer("attention.sliding_window_pattern", layers, None)
            sliding = [bool((i + 1) % 6) if v is None else bool(v) for i, v in enumerate(given)]
        rope_full: dict[str, Any] = {"rope_type": "default", "rope_theta": read.number("rope.freq_base", 1_000_000.0)}
        if read.text("rope.scaling.type") == "linear":
            rope_full.update(rope_type="linear", factor=read.number("rope.scaling.factor"))
        theta_sliding = read.number("rope.freq_base_swa", 10_000.0)
        return {
            "vocab_size": read.vocab_size(shapes),
            "hidden_size": hidden,
            "intermediate_size": read.integer("feed_forward_length"),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": read.integer("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "query_pre_attn_scalar": hidden // heads if layers == _LAYERS_OF_27B else head_dim,
            "sliding_window": read.integer("attention.sliding_window"),
            "layer_types": ["sliding_attention" if s else "full_attention" for s in sliding],
            "max_position_embeddings": read.integer("context_length", 131_072),
            "rms_norm_eps": read.number("attention.layer_norm_rms_epsilon"),
            "final_logit_softcapping": read.number("final_logit_softcapping", None),
            "tie_word_embeddings": "output.weight" not in shapes,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": theta_sliding},
                "full_attention": rope_full,
            },
        }


FAMILY = Gemma3()
