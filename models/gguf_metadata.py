"""Reading what GGUF says about an architecture: its keys with their types, its tensor names by table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from models.errors import LoadError

MAX_LAYERS = 1024  # far above any real model; what lies beyond is a corrupt header


# What llama.cpp calls the tensors that every family here has; a norm before the MLP has a name of its own in each.
GGUF_BLOCKS = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
# Gemma's norms on both sides of a block.
GGUF_SANDWICH = {
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}
GGUF_OTHERS: dict[str, str | None] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def rename_blocks(name: str, blocks: Mapping[str, str], others: Mapping[str, str | None]) -> str | None:
    """Translate a GGUF name by two tables: suffixes of `blk.<n>.`, whole names. Unknown names stay."""
    if name in others:
        return others[name]
    if (match := re.fullmatch(r"blk\.(\d+)\.(.+)", name)) and match[2] in blocks:
        return f"model.layers.{int(match[1])}.{blocks[match[2]]}"
    return name


class Metadata:
    """Typed reading of one architecture's GGUF keys: `number("block_count")` reads `gemma3.block_count`."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str, where: str) -> None:
        self._metadata, self._prefix, self._where = metadata, architecture + ".", where

    def has_number(self, key: str) -> bool:
        """Whether the key holds one number (and not, say, one for every layer)."""
        return isinstance(self._metadata.get(self._prefix + key), (int, float))

    def text(self, key: str) -> str | None:
        """A string, None where the file has none."""
        value = self._metadata.get(self._prefix + key)
        if value is not None and not isinstance(value, str):
            raise LoadError(f"{self._where}: {self._prefix}{key} is {type(value).__name__}, expected a string")
        return value

    def number(self, key: str, default: Any = ...) -> Any:
        """An int or float; a missing key without a default is a LoadError."""
        value = self._get(key, default)
        if value is default:
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise LoadError(f"{self._where}: {self._prefix}{key} is {type(value).__name__}, expected a number")
        return value

    def integer(self, key: str, default: Any = ...) -> Any:
        """A positive int; a missing key without a default is a LoadError."""
        value = self.number(key, default)
        if value is default:
            return value
        if not isinstance(value, int) or value <= 0:
            raise LoadError(f"{self._where}: {self._prefix}{key} = {value}, expected a positive integer")
        return value

    def per_layer(self, key: str, layers: int, default: Any = ...) -> list[Any]:
        """One int or bool a layer; the file may hold one scalar for all of them."""
        value = self._get(key, default)
        if value is default:
            return [default] * layers
        values = value.tolist() if hasattr(value, "tolist") else value
        values = values if isinstance(values, list) else [values] * layers
        if len(values) != layers:
            raise LoadError(f"{self._where}: {self._prefix}{key} has {len(values)} values, expected {layers}")
        if not all(isinstance(v, int) for v in values):
            raise LoadError(f"{self._where}: {self._prefix}{key} holds values that are not whole numbers")
        return values

    def refuse(self, *keys: str) -> None:
        """LoadError if a key asks for something that no part of this runner computes."""
        for key in keys:
            value = self._metadata.get(self._prefix + key)
            if value is not None and any(self.per_layer(key, len(value)) if hasattr(value, "__len__") else [value]):
                raise LoadError(f"{self._where}: {self._prefix}{key} = {brief(value)} is not supported by this runner")

    def layers(self) -> int:
        """block_count, bounded before anything is made that long."""
        layers = self.integer("block_count")
        if layers > MAX_LAYERS:
            raise LoadError(f"{self._where}: {self._prefix}block_count = {layers}, expected at most {MAX_LAYERS}")
        return layers

    def vocab_size(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """Rows of the embedding: the one truth about the vocabulary that every file states."""
        shape = shapes.get("token_embd.weight", ())
        if len(shape) != 2:
            raise LoadError(f"{self._where}: tensor token_embd.weight is missing or not a matrix, found {list(shape)}")
        return shape[0]

    def _get(self, key: str, default: Any) -> Any:
        value = self._metadata.get(self._prefix + key, default)
        if value is ...:
            raise LoadError(f"{self._where}: metadata key {self._prefix}{key} is missing")
        return value


def brief(value: Any) -> str:
    """The repr of a value, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
