"""What the loader asks of a model family: its config, its Hugging Face class, its spec and its tensor names.

One subclass and one instance a family, each in a file of its own (gemma4.py, gemma3.py, qwen3.py) that opens with the
facts that surprise; families.py lists them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from models import hf_guard  # noqa: F401  before transformers, which every family imports when it is used
from models.errors import LoadError
from models.gguf_metadata import GGUF_OTHERS, MAX_LAYERS, brief, rename_blocks
from models.spec import AttentionSpec, ModelSpec

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

# Keys of config.json that change the arithmetic in a way no part of this runner computes -> does this value do so?
_UNSUPPORTED_EVERYWHERE: dict[str, Callable[[Any], bool]] = {
    "auto_map": bool,  # Python code shipped with the weights
    "quantization_config": bool,  # GPTQ, AWQ, fp8 ...: their tensors are not plain weights
    "attention_bias": bool,
    "attn_logit_softcapping": lambda value: value is not None,
    "num_experts": bool,
    "num_local_experts": bool,
}
_ROPE_TYPES = ("default", "linear", "proportional", "llama3", "yarn")  # the others change inv_freq with the length

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "query_pre_attn_scalar"),
)
# Far above any real model; what lies beyond is a corrupt header, and Hugging Face would allocate for it.
MAX_SIZE, MAX_HEAD_DIM = 1 << 24, 1 << 14


class Family(ABC):
    """One architecture: how its sources spell it and how Hugging Face builds it."""

    name: str
    model_types: tuple[str, ...]
    """`model_type` of a config.json that this family reads; a multimodal wrapper's text part is taken."""
    gguf_architecture: str
    activation: str
    end_of_turn: tuple[str, ...] = ()
    """Control tokens that end an answer even where the GGUF's eos_token_id does not say so."""
    unit_offset_norms: bool = False
    """Gemma 3: a norm multiplies by 1 + weight, so that the identity is a weight of zero."""
    sandwich_norms: bool = False
    """Gemma: norms stand behind the attention and MLP blocks as well as before them."""
    gguf_blocks: ClassVar[Mapping[str, str]]
    """GGUF name of a layer's tensor behind `blk.<n>.` -> its state_dict name behind `model.layers.<n>.`"""
    gguf_others: ClassVar[Mapping[str, str | None]] = GGUF_OTHERS
    """The other GGUF names -> state_dict names; None: known and not needed."""
    unsupported: ClassVar[Mapping[str, Callable[[Any], bool]]] = {}
    """Further config keys to refuse: key -> is this value one that we cannot compute?"""

    @abstractmethod
    def make_config(self, fields: dict[str, Any]) -> PretrainedConfig:
        """The Hugging Face text config of these fields."""

    @abstractmethod
    def build(self, config: PretrainedConfig) -> torch.nn.Module:
        """The Hugging Face causal LM with random weights, on whatever device the caller's context says."""

    @abstractmethod
    def layer(self, config: PretrainedConfig, index: int) -> AttentionSpec:
        """The attention of decoder layer `index`."""

    def spec(self, config: Any) -> ModelSpec:
        """The facts that caches, kernels and reports need."""
        return ModelSpec(
            family=self.name,
            layers=tuple(self.layer(config, index) for index in range(config.num_hidden_layers)),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
            tied_embeddings=config.tie_word_embeddings,
            logit_softcap=getattr(config, "final_logit_softcapping", None),
        )

    @abstractmethod
    def config_from_gguf(
        self, metadata: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], where: str = "GGUF"
    ) -> dict[str, Any]:
        """The fields of `make_config` from GGUF metadata and, where that is silent, from tensor shapes (rows first)."""

    def gguf_name(self, name: str) -> str | None:
        """state_dict name of a GGUF tensor; None: known and not needed. An unknown name comes back unchanged."""
        return rename_blocks(name, self.gguf_blocks, self.gguf_others)

    def checkpoint_name(self, name: str) -> str | None:
        """state_dict name of a safetensors tensor; None: known and not needed. An unknown name comes back unchanged."""
        return None if name.endswith("rotary_emb.inv_freq") else name

    def alters_gguf(self, name: str) -> bool:
        """Whether the GGUF converter changes the values of the tensor with this state_dict name."""
        return self.unit_offset_norms and name.endswith("norm.weight")

    def from_gguf(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The values of a state_dict tensor from those that a GGUF file stores; float32 where they change."""
        return tensor.float() - 1.0 if self.alters_gguf(name) else tensor

    def text_config(self, config: Mapping[str, Any], where: str = "config.json") -> PretrainedConfig:
        """The text model's config out of a config.json, plain or ForConditionalGeneration.

        Raises LoadError naming the key that asks for something this runner does not compute.
        """
        fields = dict(config)
        self._refuse_unsupported(fields, where)
        if "text_config" in fields:
            if not isinstance(fields["text_config"], Mapping):
                raise LoadError(f"{where}: text_config is {type(fields['text_config']).__name__}, expected an object")
            outer, fields = fields, dict(fields["text_config"])
            for key in ("tie_word_embeddings", "eos_token_id", "bos_token_id", "pad_token_id"):
                if key in outer and outer[key] is not None:
                    fields.setdefault(key, outer[key])
            self._refuse_unsupported(fields, where)
        layers = fields.get("num_hidden_layers", 1)
        if not isinstance(layers, int) or layers > MAX_LAYERS:  # before Hugging Face builds lists of that length
            raise LoadError(f"{where}: num_hidden_layers = {brief(layers)}, expected an integer up to {MAX_LAYERS}")
        for key in ("architectures", "model_type", "transformers_version", "auto_map", "dtype", "torch_dtype"):
            fields.pop(key, None)
        try:
            made = self.make_config(fields)
        except Exception as error:  # Hugging Face raises its own zoo of types for a malformed field
            raise LoadError(f"{where}: not a {self.name} config: {_first_line(error)}") from error
        self._check_sizes(made, where)
        self._refuse_rope(made, where)
        return made

    def _check_sizes(self, config: PretrainedConfig, where: str) -> None:
        values = vars(config)  # not getattr: Gemma 4's config guards attributes that its layers may override
        for key in _SIZES:
            if key in values and (type(values[key]) is not int or not 0 < values[key] <= MAX_SIZE):
                raise LoadError(f"{where}: {key} = {brief(values[key])}, expected an integer from 1 to {MAX_SIZE}")
        for key in ("rms_norm_eps", "final_logit_softcapping"):
            if (value := values.get(key)) is not None and not _positive(value):
                raise LoadError(f"{where}: {key} = {brief(value)}, expected a positive number")
        if len(config.layer_types) != config.num_hidden_layers:
            found = len(config.layer_types)
            raise LoadError(
                f"{where}: layer_types has {found} entries, num_hidden_layers is {config.num_hidden_layers}"
            )
        if unknown := set(config.layer_types) - {"full_attention", "sliding_attention"}:
            raise LoadError(
                f"{where}: layer_types holds {sorted(unknown)}, expected full_attention or sliding_attention"
            )

        for i, layer in enumerate(self.spec(config).layers):
            heads = (layer.num_heads, layer.num_kv_heads, layer.head_dim, 1 if layer.window is None else layer.window)
            whole = (
                all(type(value) is int and 0 < value <= MAX_SIZE for value in heads) and layer.head_dim <= MAX_HEAD_DIM
            )
            if not whole or layer.num_heads % layer.num_kv_heads:
                raise LoadError(
                    f"{where}: layer {i} has {layer.num_heads} query heads over {layer.num_kv_heads} key-value heads "
                    f"of {layer.head_dim}, window {layer.window}; expected whole numbers above 0, the first a "
                    "multiple of the second"
                )

    def _refuse_unsupported(self, fields: Mapping[str, Any], where: str) -> None:
        for key, refuses in {**_UNSUPPORTED_EVERYWHERE, **self.unsupported}.items():
            if key in fields and refuses(fields[key]):
                raise LoadError(f"{where}: {key} = {brief(fields[key])} is not supported by this runner ({self.name})")
        for key in ("hidden_activation", "hidden_act"):
            if fields.get(key, self.activation) not in (self.activation, None):
                raise LoadError(f"{where}: {key} = {fields[key]!r} is not supported, expected {self.activation!r}")

    def _refuse_rope(self, config: PretrainedConfig, where: str) -> None:
        parameters = getattr(config, "rope_parameters", None) or {}
        by_kind = parameters if all(isinstance(v, Mapping) for v in parameters.values()) else {"": parameters}
        for kind, rope in by_kind.items():
            rope_type = rope.get("rope_type", "default")
            if rope_type not in _ROPE_TYPES:
                key = f"rope_parameters.{kind}.rope_type".replace("..", ".")
                raise LoadError(f"{where}: {key} = {rope_type!r} is not supported, expected one of {_ROPE_TYPES}")
            for key in ("rope_theta", "factor"):
                if key in rope and not _positive(rope[key]):
                    raise LoadError(
                        f"{where}: rope_parameters {kind} {key} = {rope[key]!r}, expected a positive number"
                    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
