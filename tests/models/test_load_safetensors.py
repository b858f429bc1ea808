"""safetensors headers: what is sound is read exactly, and every fault is a LoadError that names it."""

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from models.errors import LoadError
from models.load import safetensors as ours
from models.load.safetensors import read_safetensors, read_values


def pack(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def t(begin, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
def test_values_are_those_of_the_reference_writer(tmp_path, dtype, out_dtype, monkeypatch):
    monkeypatch.setattr(ours, "CHUNK_BYTES", 1024)
    torch.manual_seed(0)
    tensors = {"a": torch.randn(7, 130).to(dtype), "b": torch.randn(1).to(dtype), "empty": torch.empty(0, 4).to(dtype)}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    found = read_safetensors(path)
    assert found.keys() == tensors.keys()
    for name, expected in tensors.items():
        assert found[name].shape == tuple(expected.shape)
        out = torch.full((expected.numel(),), float("nan"), dtype=out_dtype)
        split = expected.numel() // 2
        read_values(path, found[name], out[:split], 0)
        read_values(path, found[name], out[split:], split)
        assert torch.equal(out, expected.flatten().to(out_dtype))


def test_integer_tensors_are_described(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"n": torch.tensor(3), "flags": torch.tensor([True, False])}, path)
    assert {x.dtype for x in read_safetensors(path).values()} == {"I64", "BOOL"}


FAULTS = {
    "empty": (b"", "0 bytes is too short"),
    "header longer than the file": (pack({"a": t(0, 4)}, bytes(4), length=10_000), "claims a header of 10000 bytes"),
    "absurd header": (pack({}, length=1 << 63), "claims a header of 9223372036854775808 bytes"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
    "html": (b"<!doctype html>\n<html><body>Not found</body></html>", "HTML page"),
    "html after blanks": (b"\n   <html>" + bytes(50), "HTML page"),
    "pickle": (b"PK\x03\x04" + bytes(60), "pickle"),
    "gguf": (b"GGUF" + bytes(60), "GGUF file"),
    "not json": (pack(b"{nonsense"), "header is not JSON"),
    "not utf-8": (pack(b'{"\xff": 1}'), "header is not JSON"),
    "deep json": (pack(b"[" * 100_000), "header is not JSON"),
    "not an object": (pack([1, 2]), "header is list"),
    "not an entry": (pack({"a": 3}), "tensor 'a': expected an object"),
    "no offsets": (pack({"a": {"dtype": "F32", "shape": [1]}}), "tensor 'a': expected an object"),
    "dtype": (pack({"a": t(0, 4, dtype="Q4")}, bytes(4)), "tensor 'a': unknown dtype 'Q4'"),
    "dtype kind": (pack({"a": t(0, 4, dtype=[])}, bytes(4)), "tensor 'a': unknown dtype"),
    "shape text": (pack({"a": t(0, 4, shape="4")}, bytes(4)), "tensor 'a': shape 4 is not a list"),
    "shape negative": (pack({"a": t(0, 4, shape=[-1])}, bytes(4)), "whole numbers"),
    "shape fraction": (pack({"a": t(0, 4, shape=[1.0])}, bytes(4)), "whole numbers"),
    "shape bool": (pack({"a": t(0, 4, shape=[True])}, bytes(4)), "whole numbers"),
    "shape huge": (pack({"a": t(0, 4, shape=[1 << 40, 1 << 40])}, bytes(4)), "needs 4835703278458516698824704 bytes"),
    "many dims": (pack({"a": t(0, 4, shape=[1] * 9)}, bytes(4)), "up to 8"),
    "shape and bytes": (pack({"a": t(0, 8, shape=[3])}, bytes(8)), r"F32 \[3\] needs 12 bytes, data_offsets give 8"),
    "offsets backwards": (pack({"a": t(8, 4, shape=[1])}, bytes(8)), "data_offsets"),
    "offsets beyond": (pack({"a": t(0, 4000)}, bytes(4)), "data_offsets"),
    "three offsets": (pack({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(4)), "data_offsets"),
    "overlap": (pack({"a": t(0, 8), "b": t(4, 12)}, bytes(12)), "tensor 'b' at byte 4 overlaps 'a', which ends at 8"),
    "same place": (pack({"a": t(0, 8), "b": t(0, 8)}, bytes(8)), "overlaps"),
    "gap": (pack({"a": t(0, 4), "b": t(8, 12)}, bytes(12)), "tensor 'b' at byte 8 leaves a gap after 'a'"),
    "gap at the start": (pack({"a": t(4, 8)}, bytes(8)), "leaves a gap after the start"),
    "truncated": (pack({"a": t(0, 64)}, bytes(40)), r"bytes, expected \d+ by its header \(truncated\)"),
    "trailing": (pack({"a": t(0, 4)}, bytes(9)), r"expected \d+ by its header \(trailing bytes\)"),
    "twice": (pack(b'{"a": 1, "a": 2, "b": 3}'), "the header names a twice"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named(tmp_path, fault):
    content, message = FAULTS[fault]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=message) as error:
        read_safetensors(path)
    assert str(error.value).startswith(str(path))


def test_the_unbroken_twin_of_the_faults_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack({"b": t(4, 12), "a": t(0, 4), "__metadata__": {"format": "pt"}}, bytes(12)))
    assert {name: x.nbytes for name, x in read_safetensors(path).items()} == {"a": 4, "b": 8}


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack({"a": t(0, 64)}, bytes(64)))
    tensor = read_safetensors(path)["a"]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(LoadError, match="tensor 'a' lacks 10 bytes"):
        read_values(path, tensor, torch.empty(16), 0)
