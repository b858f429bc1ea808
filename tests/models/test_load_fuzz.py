"""Corrupt headers: whatever bytes a file holds, loading it succeeds or is a LoadError, quickly and in little memory."""

import json
import struct
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.errors import LoadError
from models.load.fill import build_on_meta, fill
from models.load.gguf import read_gguf
from models.load.resolve import resolve
from models.load.safetensors import read_safetensors

pytestmark = pytest.mark.timeout(120)  # a hang is a failure, not a wait
QUICK = dict(deadline=None, suppress_health_check=list(HealthCheck))
ODD = [
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    31,
    255,
    256,
    65535,
    1 << 24,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    1 << 61,
    1 << 63,
    (1 << 64) - 1,
]
KINDS = dict(u8=0, i8=1, u16=2, i16=3, u32=4, i32=5, f32=6, bool=7, str=8, u64=10, i64=11, f64=12)
CODES = dict(u8="B", i8="b", u16="H", i16="h", u32="I", i32="i", f32="f", bool="?", u64="Q", i64="q", f64="d")


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def scalar(kind, value):
    return text(value) if kind == "str" else struct.pack("<" + CODES[kind], value)


def entry(key, kind, value):
    if kind.endswith("[]"):
        body = b"".join(scalar(kind[:-2], v) for v in value)
        return text(key) + struct.pack("<IIQ", 9, KINDS[kind[:-2]], len(value)) + body
    return text(key) + struct.pack("<I", KINDS[kind]) + scalar(kind, value)


def tiny_metadata(a):
    """A two-layer model of architecture `a` with a vocabulary of eight tokens."""
    items = {
        "general.architecture": ("str", a), f"{a}.block_count": ("u32", 2), f"{a}.context_length": ("u32", 64),
        f"{a}.embedding_length": ("u32", 8), f"{a}.feed_forward_length": ("u32", 8),
        f"{a}.attention.head_count": ("u32", 2),
        f"{a}.attention.head_count_kv": ("u32", 1), f"{a}.attention.key_length": ("u32", 4),
        f"{a}.attention.layer_norm_rms_epsilon": ("f32", 1e-6), f"{a}.rope.freq_base": ("f32", 1e4),
        f"{a}.attention.sliding_window": ("u32", 4), f"{a}.attention.sliding_window_pattern": ("bool[]", [True, False]),
        f"{a}.rope.scaling.type": ("str", "linear"), f"{a}.rope.scaling.factor": ("f32", 8.0),
        f"{a}.final_logit_softcapping": ("f32", 30.0), "tokenizer.ggml.model": ("str", "llama"),
        "tokenizer.ggml.tokens": ("str[]", ["<unk>", "<s>", "</s>", "a", "b", "ab", "▁", "▁a"]),
        "tokenizer.ggml.scores": ("f32[]", [0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0]),
        "tokenizer.ggml.token_type": ("i32[]", [2, 3, 3, 1, 1, 1, 1, 1]), "tokenizer.ggml.bos_token_id": ("u32", 1),
        "tokenizer.ggml.eos_token_id": ("u32", 2), "tokenizer.ggml.add_bos_token": ("bool", True),
        "tokenizer.chat_template": ("str", "x"), "split.count": ("u16", 1), "general.alignment": ("u32", 32),
        "general.sampling.temp": ("f32", 0.5),
    }  # fmt: skip
    return items


def tiny_tensors(a):
    layer = {
        "attn_norm": (8,), "attn_q": (8, 8), "attn_k": (8, 4), "attn_v": (8, 4), "attn_output": (8, 8),
        "attn_q_norm": (4,), "attn_k_norm": (4,), "ffn_norm": (8,), "ffn_gate": (8, 8),
        "ffn_up": (8, 8), "ffn_down": (8, 8),
    }  # fmt: skip
    if a != "qwen3":
        layer |= {"post_attention_norm": (8,), "post_ffw_norm": (8,)}
    if a == "gemma4":
        layer |= {"layer_output_scale": (1,)}
    tensors = {"token_embd.weight": (8, 8), "output_norm.weight": (8,)}
    return tensors | {f"blk.{i}.{name}.weight": ne for i in range(2) for name, ne in layer.items()}


def gguf(metadata, tensors):
    infos, offset = [], 0
    for name, ne in tensors.items():
        infos.append(text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, 0, offset))
        size = 4
        for dim in ne:
            size *= dim
        offset += -(-size // 32) * 32
    entries = [entry(key, *value) for key, value in metadata.items()]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(entries)) + b"".join(entries + infos)
    return head + bytes(-len(head) % 32) + bytes(offset), len(head)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "m.gguf"


def refusal(act, path):
    """The text of the LoadError that `act(path)` ends with, None if it ends well."""
    try:
        act(path)
    except LoadError as error:
        return str(error)
    return None


def load_all(path):
    """Every stage that a corrupt file can reach."""
    source = resolve(str(path))
    fill(build_on_meta(source), source, device="cpu", dtype=torch.float32)
    source.load_tokenizer()


@pytest.mark.parametrize("architecture", ["gemma4", "gemma3", "qwen3"])
def test_the_sound_twin_loads(file, architecture):
    file.write_bytes(gguf(tiny_metadata(architecture), tiny_tensors(architecture))[0])
    assert refusal(load_all, file) is None


def mutations(head):
    """Byte flips, fields overwritten with odd numbers, pieces cut out or repeated, truncation."""
    at = st.integers(0, head - 1)
    numbers = st.sampled_from(ODD).flatmap(lambda v: st.sampled_from([struct.pack("<Q", v)[:n] for n in (1, 2, 4, 8)]))
    return st.lists(
        st.one_of(
            st.tuples(st.just("write"), at, st.one_of(numbers, st.binary(min_size=1, max_size=4))),
            st.tuples(st.just("cut"), at, st.integers(1, 40)),
            st.tuples(st.just("repeat"), at, st.integers(1, 200)),
            st.tuples(st.just("end"), at, st.none()),
        ),
        min_size=1,
        max_size=3,
    )


def mutate(raw, steps):
    for what, at, how in steps:
        if what == "write":
            raw = raw[:at] + how + raw[at + len(how) :]
        elif what == "cut":
            raw = raw[:at] + raw[at + how :]
        elif what == "repeat":
            raw = raw[:at] + raw[at : at + how] * 2 + raw[at + how :]
        else:
            raw = raw[:at]
    return raw


def in_little_memory(read, path):
    """`read(path)` or LoadError, within what the file's bytes justify: 100 bytes of Python for each, and a floor."""
    tracemalloc.start()
    message = refusal(read, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message is None or str(path) in message
    assert peak < 100 * path.stat().st_size + (1 << 20)


RAW_GGUF, HEAD = gguf(tiny_metadata("gemma3"), tiny_tensors("gemma3"))


@settings(max_examples=1000, **QUICK)
@given(steps=mutations(HEAD))
def test_gguf_headers(file, steps):
    file.write_bytes(mutate(RAW_GGUF, steps))
    in_little_memory(read_gguf, file)


@settings(max_examples=300, **QUICK)
@given(raw=st.binary(max_size=300).map(lambda tail: b"GGUF\x03\0\0\0" + tail))
def test_gguf_from_noise(file, raw):
    file.write_bytes(raw)
    in_little_memory(read_gguf, file)


def values_of(kind):
    by_kind = {
        "str": st.sampled_from(["", "linear", "yarn", "gpt2", "gemma4", "none", "qwen3", "x" * 70]),
        "bool": st.booleans(),
        "f32": st.sampled_from([0.0, -1.0, 1e-6, 0.5, 3e38, float("inf"), float("nan")]),
        "f64": st.sampled_from([0.0, -1.0, 1e300, float("nan")]),
    }
    if kind.endswith("[]"):
        return st.lists(values_of(kind[:-2]), max_size=9)
    if kind in by_kind:
        return by_kind[kind]
    bits, signed = int(kind[1:]), kind[0] == "i"
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    return st.sampled_from([v for v in (*ODD, -1, 4, 5, 100) if low <= v <= high])


FIELDS = st.sampled_from([*KINDS, "str[]", "i32[]", "f32[]", "bool[]", "u64[]"])


@settings(max_examples=250, **QUICK)
@given(data=st.data(), architecture=st.sampled_from(["gemma4", "gemma3", "qwen3"]))
def test_gguf_models_with_wrong_fields(file, data, architecture):
    """Sound headers whose metadata or shapes lie, through config, model, weights and tokenizer."""
    metadata, tensors = tiny_metadata(architecture), tiny_tensors(architecture)
    for key in data.draw(st.lists(st.sampled_from([*metadata]), max_size=2, unique=True)):
        kind = data.draw(st.one_of(st.just(metadata[key][0]), FIELDS))
        metadata[key] = (kind, data.draw(values_of(kind)))
        if data.draw(st.integers(0, 5)) == 0:
            del metadata[key]
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from([*tensors]))
        tensors[name] = tuple(data.draw(st.lists(st.sampled_from([1, 4, 8, 9]), min_size=1, max_size=4)))
    file.write_bytes(gguf(metadata, tensors)[0])
    message = refusal(load_all, file)
    assert message is None or str(file) in message


HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "I64", "shape": [], "data_offsets": [32, 40]},
}
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-2, 50), st.sampled_from(ODD), st.floats(), st.text(max_size=5),
        st.sampled_from(["F32", "BF16", "F4", "I64"]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def safetensors(header):
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(40)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "model.safetensors"


def test_the_sound_safetensors_twin_is_read(shard):
    shard.write_bytes(safetensors(HEADER))
    assert set(read_safetensors(shard)) == {"a", "b", "c"}


@settings(max_examples=1000, **QUICK)
@given(steps=mutations(len(safetensors(HEADER)) - 40))
def test_safetensors_headers(shard, steps):
    shard.write_bytes(mutate(safetensors(HEADER), steps))
    in_little_memory(read_safetensors, shard)


@settings(max_examples=500, **QUICK)
@given(name=st.sampled_from("abc"), key=st.sampled_from(["dtype", "shape", "data_offsets", None]), value=JSON)
def test_safetensors_fields(shard, name, key, value):
    header = {**HEADER, name: value if key is None else {**HEADER[name], key: value}}
    shard.write_bytes(safetensors(header))
    in_little_memory(read_safetensors, shard)


CONFIG = dict(
    model_type="qwen3", vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=4, layer_types=["full_attention"], rope_parameters={"rope_theta": 1e4},
    hidden_act="silu", rms_norm_eps=1e-6, eos_token_id=1, pad_token_id=0, tie_word_embeddings=True, dtype="bfloat16",
    sliding_window=None, max_position_embeddings=64, attention_bias=False, use_sliding_window=False,
)  # fmt: skip


@settings(max_examples=300, **QUICK)
@given(key=st.sampled_from([*CONFIG, "text_config", "torch_dtype", "rope_scaling"]), value=JSON)
def test_configs(tmp_path_factory, key, value):
    """Any JSON under a key of config.json."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps({**CONFIG, key: value}))
    message = refusal(lambda path: build_on_meta(resolve(str(path), load_format="dummy")), folder)
    assert message is None or str(folder) in message
