"""A GGUF file as a Source: names and config by its family, values through dequantize, tokenizer from its metadata."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import LoadError
from models.families import Family, family_for_gguf
from models.load.gguf import GgufFile, GgufTensor, read_gguf
from models.load.source import Source, StoredTensor

if TYPE_CHECKING:
    import torch

# GGUF's recommended-sampling keys -> generation_config names.
_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}


def gguf_source(path: Path, name: str) -> Source:
    """Read the header of `path` and describe its model; LoadError if it is not a sound GGUF of a known family."""
    file = read_gguf(path)
    family = family_for_gguf(file.metadata.get("general.architecture"), str(path))
    shapes = {tensor.name: tensor.shape for tensor in file.tensors.values()}
    fields = family.config_from_gguf(file.metadata, shapes, str(path))
    rows, tokens = shapes["token_embd.weight"][0], file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > rows:
        raise LoadError(f"{path}: a vocabulary of {len(tokens)} tokens, but token_embd.weight has {rows} rows")
    defaults = generation_defaults(file, family)
    fields["eos_token_id"] = defaults.get("eos_token_id") or None
    fields["bos_token_id"] = defaults.get("bos_token_id")
    fields["pad_token_id"] = _token_id(file, "tokenizer.ggml.padding_token_id")
    config = family.text_config(fields, str(path))
    return Source(
        name=name,
        kind="gguf",
        path=path,
        family=family,
        config=config,
        spec=family.spec(config),
        stored=tuple(_stored(file, family)),
        generation_defaults=defaults,
        tokenizer_loader=partial(_load_tokenizer, file),
    )


def generation_defaults(file: GgufFile, family: Family) -> dict[str, Any]:
    """EOS list, BOS and recommended sampling of a GGUF file.

    Like llama.cpp, the family's end-of-turn control tokens count as EOS even where eos_token_id names another.
    """
    defaults: dict[str, Any] = {}
    ends = [_token_id(file, f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    tokens = file.metadata.get("tokenizer.ggml.tokens", [])
    types: Any = file.metadata.get("tokenizer.ggml.token_type")
    wanted = set(family.end_of_turn)
    if isinstance(tokens, list) and hasattr(types, "tolist") and len(tokens) == len(types):
        ends += [i for i, token in enumerate(tokens) if token in wanted and types[i] in (3, 4)]  # control, user-defined
    if found := list(dict.fromkeys(i for i in ends if i is not None)):
        defaults["eos_token_id"] = found
    if (bos := _token_id(file, "tokenizer.ggml.bos_token_id")) is not None:
        defaults["bos_token_id"] = bos
    for key, ours in _SAMPLING.items():
        if isinstance(value := file.metadata.get(key), (int, float)):
            defaults[ours] = value
    return defaults


def _token_id(file: GgufFile, key: str) -> int | None:
    value = file.metadata.get(key)
    if value is None:
        return None
    rows = file.tensors["token_embd.weight"].shape[0]
    if type(value) is not int or not 0 <= value < rows:
        raise LoadError(f"{file.path}: {key} = {value!r}, expected a token id below {rows}")
    return value


def _stored(file: GgufFile, family: Family):
    for tensor in file.tensors.values():
        name = family.gguf_name(tensor.name)
        if name is None:
            continue
        yield StoredTensor(
            name=name,
            shape=tensor.shape,
            format=tensor.type_name,
            nbytes=tensor.nbytes,
            where=f"{file.path}: {tensor.name}",
            read_into=partial(_read_into, file.path, tensor, family, name),
            natural={"F16": "float16", "BF16": "bfloat16"}.get(tensor.type_name, "float32"),
        )


def _read_into(path: Path, tensor: GgufTensor, family: Family, name: str, out: torch.Tensor, start: int) -> None:
    import torch

    from models.load.dequantize import read_values

    if not family.alters_gguf(name):
        return read_values(path, tensor, out, start)
    exact = torch.empty(out.numel(), dtype=torch.float32)  # a shift in bfloat16 would lose the weight's own digits
    read_values(path, tensor, exact, start)
    out.copy_(family.from_gguf(name, exact))


def _load_tokenizer(file: GgufFile):
    from models.load.tokenizer import tokenizer_from_gguf

    return tokenizer_from_gguf(file)
