"""GGUF headers: what is sound is read exactly, and every fault is a LoadError that names it."""

import struct

import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from models.errors import LoadError
from models.load.dequantize import read_values
from models.load.gguf import TYPES, read_gguf

KINDS = dict(u8=0, i8=1, u16=2, i16=3, u32=4, i32=5, f32=6, bool=7, str=8, u64=10, i64=11, f64=12)
CODES = dict(u8="B", i8="b", u16="H", i16="h", u32="I", i32="i", f32="f", bool="?", u64="Q", i64="q", f64="d")
F32, F16, Q8_0, Q4_K = 0, 1, 8, 12


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value_bytes(kind, value):
    return text(value) if kind == "str" else struct.pack("<" + CODES[kind], value)


def entry(key, kind, value):
    if kind.endswith("[]"):
        body = b"".join(value_bytes(kind[:-2], v) for v in value)
        return text(key) + struct.pack("<IIQ", 9, KINDS[kind[:-2]], len(value)) + body
    return text(key) + struct.pack("<I", KINDS[kind]) + value_bytes(kind, value)


def info(name, ne, kind, offset):
    return text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)


def gguf(entries, infos, data=b"", *, magic=b"GGUF", version=3, counts=None):
    tensors, keys = counts or (len(infos), len(entries))
    head = magic + struct.pack("<IQQ", version, tensors, keys) + b"".join(entries) + b"".join(infos)
    return head + bytes(-len(head) % 32) + data


@pytest.fixture
def write(tmp_path):
    def write(*args, **options):
        path = tmp_path / "m.gguf"
        path.write_bytes(args[0] if isinstance(args[0], bytes) else gguf(*args, **options))
        return path

    return write


def test_a_sound_file_is_read_exactly(write):
    metadata = [
        ("general.architecture", "str", "qwen3"), ("a.u8", "u8", 200), ("a.i8", "i8", -3), ("a.u16", "u16", 60000),
        ("a.i16", "i16", -5), ("a.u32", "u32", 4_000_000_000), ("a.i32", "i32", -7), ("a.f32", "f32", 0.5),
        ("a.bool", "bool", True), ("a.u64", "u64", 1 << 60), ("a.i64", "i64", -(1 << 60)), ("a.f64", "f64", 1e300),
        ("a.strings", "str[]", ["", "ä", "日本", "x" * 300]), ("a.floats", "f32[]", [1.5, -2.0]),
        ("a.empty", "i32[]", []),         ("a.bools", "bool[]", [True, False]),
    ]  # fmt: skip
    first, second = np.arange(12, dtype="<f4"), np.arange(6, dtype="<f2")
    data = first.tobytes() + bytes(16) + second.tobytes()
    path = write([entry(*item) for item in metadata], [info("one", (4, 3), F32, 0), info("two", (6,), F16, 64)], data)
    file = read_gguf(path)
    assert file.version == 3
    for key, kind, value in metadata:
        found = file.metadata[key]
        assert (found.tolist() if kind.endswith("[]") and kind != "str[]" else found) == value, key
    assert file.tensors["one"].shape == (3, 4)
    assert file.tensors["two"].shape == (6,)
    out = torch.empty(12)
    read_values(path, file.tensors["one"], out, 0)
    assert out.tolist() == list(range(12))
    half = torch.empty(6, dtype=torch.float16)
    read_values(path, file.tensors["two"], half, 0)
    assert half.tolist() == list(range(6))


def test_our_type_table_is_ggufs():
    for number, (name, block, nbytes) in TYPES.items():
        assert GGMLQuantizationType(number).name == name
        assert GGML_QUANT_SIZES[GGMLQuantizationType(number)] == (block, nbytes)


@pytest.mark.parametrize("number", TYPES)
def test_values_of_every_type(write, number, monkeypatch):
    """Read in parts and in chunks, any type gives what the gguf package makes of the whole; also in bfloat16."""
    from models.load import dequantize as ours

    monkeypatch.setattr(ours, "CHUNK_VALUES", 512)
    name, block, nbytes = TYPES[number]
    rng = np.random.default_rng(number)
    rows, columns = 3, 1024
    if block == 1:
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        raw = {
            "F32": lambda v: v,
            "F16": lambda v: v.astype("<f2"),
            "BF16": lambda v: (v.view("<u4") >> 16).astype("<u2"),
        }
        packed = raw[name](values).view(np.uint8).reshape(rows, -1)
    else:
        packed = rng.integers(0, 256, (rows, columns // block * nbytes), dtype=np.uint8)
        packed[:, 1::2] &= 0x3B  # keeps half-precision scales wherever they lie small and finite
    expected = torch.from_numpy(dequantize(packed, GGMLQuantizationType(number)).copy()).flatten()
    path = write([], [info("t", (columns, rows), number, 0)], packed.tobytes())
    tensor = read_gguf(path).tensors["t"]
    assert tensor.nbytes == packed.size
    out = torch.full((rows * columns,), float("nan"))
    for start in (0, 768, 2048):
        stop = {0: 768, 768: 2048, 2048: rows * columns}[start]
        read_values(path, tensor, out[start:stop], start)
    assert torch.equal(out, expected.float())
    low = torch.empty(rows * columns, dtype=torch.bfloat16)
    read_values(path, tensor, low, 0)
    assert torch.equal(low, expected.bfloat16())


ONE = [info("t", (4,), F32, 0)]
DATA = bytes(16)
FAULTS = {
    "empty": (b"", "0 bytes is too short"),
    "short": (b"GGUF\x03\0\0\0", "8 bytes is too short"),
    "magic": (gguf([], ONE, DATA, magic=b"GGML"), r"not a GGUF file: begins with b'GGML'"),
    "html": (b"<!DOCTYPE html><html>" + bytes(100), "HTML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
    "version 1": (gguf([], ONE, DATA, version=1), "version 1 is not supported"),
    "version 99": (gguf([], ONE, DATA, version=99), "version 99 is not supported"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "big-endian"),
    "tensor count": (gguf([], ONE, DATA, counts=(1 << 40, 0)), "claims 1099511627776 tensors"),
    "key count": (gguf([], ONE, DATA, counts=(0, 1 << 62)), "claims 4611686018427387904 metadata entries"),
    "one key too many": (gguf([entry("a", "u8", 1)], [], counts=(0, 3)), "length 0|truncated|claims"),
    "string length": (gguf([text("k") + struct.pack("<IQ", 8, 1 << 50)], []), "truncated: metadata key 'k' needs"),
    "array count": (
        gguf([text("k") + struct.pack("<IIQ", 9, 4, 1 << 61)], []),
        "claims 2305843009213693952 elements of metadata key 'k'",
    ),
    "string array count": (gguf([text("k") + struct.pack("<IIQ", 9, 8, 1 << 59)], []), "strings of metadata key 'k'"),
    "string in array": (
        gguf([text("k") + struct.pack("<IIQQ", 9, 8, 1, 1 << 63)], [], bytes(64)),
        "truncated: string 0 of metadata key 'k'",
    ),
    "nested array": (gguf([text("k") + struct.pack("<IIQ", 9, 9, 1)], []), "arrays of value type 9"),
    "value type": (gguf([text("k") + struct.pack("<I", 77)], [], bytes(64)), "metadata key 'k': unknown value type 77"),
    "bool": (gguf([text("k") + struct.pack("<IB", 7, 2)], [], bytes(64)), "2 is not a bool"),
    "bools": (gguf([text("k") + struct.pack("<IIQB", 9, 7, 1, 9)], [], bytes(64)), "9 is not a bool"),
    "utf-8 key": (gguf([entry(b"\xff\xfe", "u8", 1)], []), "not UTF-8"),
    "utf-8 value": (gguf([entry("k", "str", b"\xff\xfe")], []), "metadata key 'k': not UTF-8"),
    "utf-8 strings": (gguf([entry("k", "str[]", [b"ok", b"\xff"])], []), "string 1 of metadata key 'k': not UTF-8"),
    "duplicate key": (gguf([entry("k", "u8", 1), entry("k", "u8", 1)], []), "duplicate metadata key 'k'"),
    "alignment": (gguf([entry("general.alignment", "u32", 24)], ONE, DATA), "general.alignment = 24"),
    "alignment zero": (gguf([entry("general.alignment", "u32", 0)], ONE, DATA), "general.alignment = 0"),
    "alignment type": (gguf([entry("general.alignment", "str", "32")], ONE, DATA), "general.alignment = '32'"),
    "split": (gguf([entry("split.count", "u16", 3)], ONE, DATA), "split.count = 3"),
    "no dims": (gguf([], [info("t", (), F32, 0)], DATA), "tensor 't': 0 dimensions"),
    "five dims": (gguf([], [info("t", (1,) * 5, F32, 0)], DATA), "tensor 't': 5 dimensions, expected 1 to 4"),
    "zero dim": (gguf([], [info("t", (4, 0), F32, 0)], DATA), "dimension of zero"),
    "overflow": (gguf([], [info("t", (1 << 62, 1 << 62), F32, 0)], DATA), "tensor 't': shape .* needs"),
    "wraps to zero": (gguf([], [info("t", (1 << 32, 1 << 32), F32, 0)], DATA), "tensor 't': shape .* needs"),
    "type": (gguf([], [info("t", (4,), 999, 0)], DATA), "tensor 't': tensor type 999 is unknown"),
    "block": (gguf([], [info("t", (33,), Q8_0, 0)], bytes(99)), "tensor 't': rows of 33 are not a multiple of Q8_0's"),
    "k block": (
        gguf([], [info("t", (32, 8), Q4_K, 0)], bytes(144)),
        "rows of 32 are not a multiple of Q4_K's block of 256",
    ),
    "offset beyond": (gguf([], [info("t", (4,), F32, 1 << 40)], DATA), "tensor 't': offset 1099511627776"),
    "misaligned": (
        gguf([], [info("t", (4,), F32, 0), info("u", (4,), F32, 17)], bytes(64)),
        "tensor 'u': offset 17.*misaligned",
    ),
    "overlap": (
        gguf([], [info("t", (16,), F32, 0), info("u", (4,), F32, 32)], bytes(128)),
        "tensor 'u': offset 32, expected 64 .*overlapping",
    ),
    "out of order": (
        gguf([], [info("t", (4,), F32, 32), info("u", (4,), F32, 0)], bytes(64)),
        "tensor 't': offset 32, expected 0",
    ),
    "truncated data": (gguf([], [info("t", (64,), F32, 0)], bytes(200)), "truncated: tensor 't' ends at byte"),
    "duplicate tensor": (
        gguf([], [info("t", (8,), F32, 0), info("t", (8,), F32, 32)], bytes(64)),
        "duplicate tensor 't'",
    ),
    "long name": (gguf([], [info("t" * 64, (4,), F32, 0)], DATA), "length 64, expected 1 to 63"),
    "infos cut": (gguf([], [info("t", (4,), F32, 0)[:-9]], b""), "truncated|claims|dimensions"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named(write, fault):
    content, message = FAULTS[fault]
    path = write(content)
    with pytest.raises(LoadError, match=message) as error:
        read_gguf(path)
    assert str(error.value).startswith(str(path))


def test_the_unbroken_twin_of_the_faults_is_read(write):
    """The faults above are faults because of one change each: without it the same bytes load."""
    assert list(read_gguf(write([entry("k", "u8", 1)], ONE, DATA)).tensors) == ["t"]
    assert read_gguf(write([], ONE, DATA, version=2)).version == 2
    aligned = gguf([entry("general.alignment", "u32", 64)], [], b"")
    head = len(aligned)
    assert head % 32 == 0
    assert read_gguf(write(aligned)).tensors == {}


def test_a_file_that_shrinks_while_it_is_read(write):
    path = write([], [info("t", (64,), F32, 0)], bytes(256))
    tensor = read_gguf(path).tensors["t"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LoadError, match="tensor 't' has 156 of 256 bytes"):
        read_values(path, tensor, torch.empty(64), 0)


def test_unreadable_paths(tmp_path):
    with pytest.raises(LoadError, match=r"gone\.gguf: cannot be read: No such file"):
        read_gguf(tmp_path / "gone.gguf")
    with pytest.raises(LoadError, match="cannot be read: Is a directory"):
        read_gguf(tmp_path)
