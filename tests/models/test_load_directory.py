"""Model directories: shards, index, config, generation defaults, and each way a directory can be wrong."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import LoadError, UsageError
from models.load.resolve import resolve


@pytest.fixture
def saved(tmp_path, build_tiny_model):
    """A directory as Hugging Face saves it, in several shards."""
    folder = tmp_path / "model"
    build_tiny_model("qwen3").save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def edit_json(file, **changes):
    fields = json.loads(file.read_text())
    fields.update(changes)
    file.write_text(json.dumps({k: v for k, v in fields.items() if v is not ...}))


def test_a_sharded_directory(saved, build_tiny_model):
    source = resolve(str(saved))
    assert (source.kind, source.family.name, source.path) == ("safetensors", "qwen3", saved)
    expected = build_tiny_model("qwen3").state_dict()
    found = dict(source.tensors())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert source.bytes_by_format == {"F32": sum(tensor.nbytes for tensor in expected.values())}
    assert source.load_tokenizer() is None


def test_a_single_file_needs_no_index(saved):
    tensors = {k: v for file in saved.glob("*.safetensors") for k, v in load_file(file).items()}
    for file in saved.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, saved / "weights.safetensors")
    assert len(resolve(str(saved)).stored) == len(tensors)


def test_generation_defaults(saved):
    edit_json(saved / "config.json", eos_token_id=5)
    (saved / "generation_config.json").unlink(missing_ok=True)
    assert resolve(str(saved)).generation_defaults == {"eos_token_id": [5]}
    stated = {
        "eos_token_id": [7, 9],
        "bos_token_id": 2,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "do_sample": True,
    }
    (saved / "generation_config.json").write_text(json.dumps(stated))
    stated.pop("do_sample")
    assert resolve(str(saved)).generation_defaults == stated
    edit_json(saved / "generation_config.json", do_sample=False)
    assert resolve(str(saved)).generation_defaults["temperature"] == 0.0
    edit_json(saved / "generation_config.json", eos_token_id=[7, 9999])
    with pytest.raises(LoadError, match=r"generation_config.json: eos_token_id = \[7, 9999\] is not a token id"):
        resolve(str(saved))


def test_missing_shards_are_all_named_before_any_is_read(saved):
    shards = sorted(saved.glob("*.safetensors"))
    shards[0].unlink()
    shards[2].unlink()
    shards[1].write_bytes(b"not read yet: the missing ones come first")
    with pytest.raises(LoadError, match=f"2 of {len(shards)} shards are missing: {shards[0].name}, {shards[2].name}"):
        resolve(str(saved))


@pytest.mark.parametrize("target", ["../elsewhere.safetensors", "/etc/passwd", "a/../../b", "..", "", "..\\x", "a\0b"])
def test_an_index_that_points_outside_is_refused(saved, target):
    """transformers follows it."""
    index = saved / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    name = next(iter(weight_map))
    shutil.copy(saved / weight_map[name], saved.parent / "elsewhere.safetensors")
    edit_json(index, weight_map={**weight_map, name: target})
    with pytest.raises(LoadError, match="outside the model directory") as error:
        resolve(str(saved))
    assert repr(target) in str(error.value)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (..., "weight_map is missing"),
        ([], "weight_map is missing"),
        ({"a": 3}, "does not map"),
        ("x", "weight_map is missing"),
    ],
)
def test_a_malformed_index(saved, weight_map, message):
    edit_json(saved / "model.safetensors.index.json", weight_map=weight_map)
    with pytest.raises(LoadError, match=rf"index.json: .*{message}"):
        resolve(str(saved))


def test_index_and_shards_must_agree(saved):
    index = saved / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    name, first = next(iter(weight_map.items()))
    other = next(shard for shard in weight_map.values() if shard != first)
    edit_json(index, weight_map={**weight_map, "ghost.weight": first})
    with pytest.raises(LoadError, match=r"names tensors that no shard holds: ghost.weight"):
        resolve(str(saved))
    edit_json(index, weight_map={k: v for k, v in weight_map.items() if k != name})
    with pytest.raises(LoadError, match=f"holds tensor '{name}', which .* does not name"):
        resolve(str(saved))
    edit_json(index, weight_map={**weight_map, name: other})
    with pytest.raises(LoadError, match=f"says that '{name}' is in {other}, found it in {first}"):
        resolve(str(saved))


def test_a_tensor_in_two_shards(saved):
    shards = sorted(saved.glob("*.safetensors"))
    tensors = load_file(shards[1])
    extra = next(iter(load_file(shards[0]).items()))
    save_file({**tensors, extra[0]: extra[1]}, shards[1])
    with pytest.raises(LoadError, match=f"tensor '{extra[0]}' is also in {shards[0].name}"):
        resolve(str(saved))


def test_a_corrupt_shard_is_named(saved):
    shard = sorted(saved.glob("*.safetensors"))[1]
    shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(LoadError, match=f"{shard.name}: .*Git LFS pointer"):
        resolve(str(saved))


def test_quantised_weights_in_safetensors_are_refused(saved):
    shard = sorted(saved.glob("*.safetensors"))[0]
    save_file({k: v.to(torch.int8) for k, v in load_file(shard).items()}, shard)
    with pytest.raises(LoadError, match=r"is I8, expected one of F32, F16, BF16, F64"):
        resolve(str(saved))


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle_weights_are_refused(saved, weights):
    for file in saved.glob("*.safetensors*"):
        file.unlink()
    (saved / weights).write_bytes(b"PK\x03\x04")
    with pytest.raises(LoadError, match=f"only pickle weights \\({weights}\\)"):
        resolve(str(saved))
    with pytest.raises(LoadError, match="pickle weights can run code"):
        resolve(str(saved / weights))


def test_remote_code_is_refused(saved):
    edit_json(saved / "config.json", auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    with pytest.raises(LoadError, match=r"config.json: auto_map = .* is not supported"):
        resolve(str(saved))


def test_an_unknown_architecture_lists_the_known(saved):
    edit_json(saved / "config.json", model_type="qwen2")
    with pytest.raises(
        LoadError, match=r"model_type 'qwen2' is not supported; the closest is 'qwen3'. Supported: .*gemma3"
    ):
        resolve(str(saved))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "holds list, expected an object"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 10**5, "not JSON"),
    ],
)
def test_a_malformed_config(saved, content, message):
    (saved / "config.json").write_bytes(content)
    with pytest.raises(LoadError, match=rf"config.json: {message}"):
        resolve(str(saved))


def test_directories_without_a_model(tmp_path):
    with pytest.raises(LoadError, match=r"no config.json in this directory"):
        resolve(str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(b"")
    with pytest.raises(LoadError, match="to run a GGUF file give the path of the file itself"):
        resolve(str(tmp_path))


def test_config_without_weights(saved):
    for file in saved.glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(LoadError, match=r"no weights in this directory, expected model.safetensors"):
        resolve(str(saved))
    assert resolve(str(saved), load_format="dummy").kind == "dummy"


def test_several_files_need_an_index(saved):
    (saved / "model.safetensors.index.json").unlink()
    with pytest.raises(LoadError, match=r"\.safetensors files but no model.safetensors.index.json"):
        resolve(str(saved))


def test_paths_that_do_not_exist():
    """transformers says that it cannot connect to the hub."""
    for path in ("/nowhere/at/all", "./nothing", "missing.gguf", "a/b/c", "~/no-such-model"):
        with pytest.raises(LoadError, match=f"{path}: no such file or directory"):
            resolve(path)


def test_a_weights_file_needs_its_directory(saved):
    with pytest.raises(LoadError, match="give the directory that holds it"):
        resolve(str(next(saved.glob("*.safetensors"))))


def test_unknown_load_format(saved):
    with pytest.raises(UsageError, match="--load-format 'fast': expected auto or dummy"):
        resolve(str(saved), load_format="fast")
