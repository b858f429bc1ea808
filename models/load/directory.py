"""A Hugging Face model directory as a Source: config.json, *.safetensors, tokenizer, generation_config.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from models.errors import LoadError
from models.families import Family, family_for_model_type
from models.load.safetensors import DTYPES, SafeTensor, read_safetensors, reader
from models.load.source import Source, StoredTensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_GENERATION_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
MAX_JSON = 64 << 20


def directory_source(path: Path, name: str) -> Source:
    """Describe the model in directory `path`, every shard's header read and checked; LoadError otherwise."""
    fields, family = read_config(path)
    shards = find_shards(path)
    config = family.text_config(fields, str(path / "config.json"))
    return Source(
        name=name,
        kind="safetensors",
        path=path,
        family=family,
        config=config,
        spec=family.spec(config),
        stored=tuple(_stored(shards, family)),
        generation_defaults=generation_defaults(path, config),
        tokenizer_loader=partial(_load_tokenizer, path),
    )


def read_config(path: Path) -> tuple[dict[str, Any], Family]:
    """The fields of config.json and the family they belong to."""
    file = path / "config.json"
    if not file.is_file():
        hint = "; to run a GGUF file give the path of the file itself" if any(path.glob("*.gguf")) else ""
        raise LoadError(f"{path}: no config.json in this directory, expected a Hugging Face model{hint}")
    fields = read_json(file)
    return fields, family_for_model_type(fields.get("model_type"), str(file))


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`."""
    try:
        if file.stat().st_size > MAX_JSON:
            raise LoadError(f"{file}: {file.stat().st_size} bytes of JSON, expected at most {MAX_JSON}")
        fields = json.loads(file.read_bytes())
    except OSError as error:
        raise LoadError(f"{file}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{file}: not JSON: {str(error)[:100]}") from error
    if not isinstance(fields, dict):
        raise LoadError(f"{file}: holds {type(fields).__name__}, expected an object")
    return fields


def find_shards(path: Path) -> dict[str, tuple[Path, SafeTensor]]:
    """stored name -> (file, where in it), over all shards. Missing files are all named, before any is opened."""
    index = path / INDEX
    if not index.is_file():
        return _all_tensors([_only_file(path)])
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise LoadError(f"{index}: weight_map is missing or does not map tensor names to file names")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not name or Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name or "\0" in name:
            raise LoadError(f"{index}: weight_map points to {name!r}, outside the model directory")
    if missing := [name for name in names if not (path / name).is_file()]:
        raise LoadError(f"{path}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing)}")
    tensors = _all_tensors([path / name for name in names])
    if absent := [name for name in weight_map if name not in tensors]:
        raise LoadError(f"{index}: names tensors that no shard holds: {', '.join(absent)}")
    for name, (file, _) in tensors.items():
        if name not in weight_map:
            raise LoadError(f"{file}: holds tensor {name!r}, which {INDEX} does not name")
        if path / weight_map[name] != file:
            raise LoadError(f"{index}: says that {name!r} is in {weight_map[name]}, found it in {file.name}")
    return tensors


def _only_file(path: Path) -> Path:
    if (path / SINGLE).is_file():
        return path / SINGLE
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        raise LoadError(f"{path}: {len(found)} .safetensors files but no {INDEX} that says which belong to the model")
    if pickles := sorted(file.name for pattern in _PICKLES for file in path.glob(pattern)):
        raise LoadError(
            f"{path}: only pickle weights ({pickles[0]}), which can run code when loaded: convert to safetensors"
        )
    raise LoadError(f"{path}: no weights in this directory, expected {SINGLE} or {INDEX}")


def _all_tensors(files: list[Path]) -> dict[str, tuple[Path, SafeTensor]]:
    tensors: dict[str, tuple[Path, SafeTensor]] = {}
    for file in files:
        for name, tensor in read_safetensors(file).items():
            if name in tensors:
                raise LoadError(f"{file}: tensor {name!r} is also in {tensors[name][0].name}")
            tensors[name] = (file, tensor)
    return tensors


def _stored(tensors: dict[str, tuple[Path, SafeTensor]], family: Family) -> Iterator[StoredTensor]:
    for stored_name, (file, tensor) in tensors.items():
        if (name := family.checkpoint_name(stored_name)) is None:
            continue
        if tensor.dtype not in DTYPES:
            raise LoadError(f"{file}: tensor {stored_name!r} is {tensor.dtype}, expected one of {', '.join(DTYPES)}")
        yield StoredTensor(
            name=name,
            shape=tensor.shape,
            format=tensor.dtype,
            nbytes=tensor.nbytes,
            where=f"{file}: {stored_name}",
            read_into=reader(file, tensor),
            natural=DTYPES[tensor.dtype][1],
        )


def generation_defaults(path: Path, config: Any) -> dict[str, Any]:
    """Sampling and end-of-text of generation_config.json, else of config.json."""
    file = path / "generation_config.json"
    stated = read_json(file) if file.is_file() else {}
    defaults: dict[str, Any] = {}
    for key in ("eos_token_id", "bos_token_id"):
        value = stated.get(key, getattr(config, key, None))
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(v) is int and 0 <= v < config.vocab_size for v in values):
            raise LoadError(f"{file if key in stated else path / 'config.json'}: {key} = {value!r} is not a token id")
        if values:
            defaults[key] = values if key == "eos_token_id" else values[0]
    for key in _GENERATION_KEYS:
        value = stated.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            defaults[key] = value
    if stated.get("do_sample") is False:  # the file's temperature is then not in force
        defaults["temperature"] = 0.0
    return defaults


def _load_tokenizer(path: Path):
    from models.load.tokenizer import tokenizer_from_directory

    return tokenizer_from_directory(path)
