"""Tokenizers: from a directory as Hugging Face saved them, or built from the vocabulary inside a GGUF file.

A GGUF names one of three schemes in tokenizer.ggml.model (llama.cpp src/llama-vocab.cpp):

- "llama": SentencePiece BPE. The pair whose union scores best merges first; unknown characters become bytes.
- "gemma4": the same over explicit merges, split where newlines begin and end.
- "gpt2": byte-level BPE over explicit merges, after the split that tokenizer.ggml.pre names.

transformers' own converters are not used: theirs for Gemma segments by Unigram (Viterbi), another tokenization.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import hf_guard  # noqa: F401  before transformers, wherever it is imported below
from models.errors import LoadError
from models.load.gguf import GgufFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPACE = "\u2581"  # SentencePiece's visible space
CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")

# The word split of each supported tokenizer.ggml.pre (llama.cpp src/llama-vocab.cpp).
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTE_LEVEL_SPLITS = {"qwen2": _QWEN2_SPLIT, "qwen3": _QWEN2_SPLIT}


def tokenizer_from_directory(path: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer saved in a model directory with its chat template; None if the directory has none."""
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises a bare Exception for a malformed file
        raise LoadError(f"{path}: the tokenizer cannot be read: {type(error).__name__}: {str(error)[:200]}") from error


def tokenizer_from_gguf(file: GgufFile) -> PreTrainedTokenizerFast | None:
    """The tokenizer of a GGUF file with its chat template; None if the file has none (tokenizer.ggml.model "none")."""
    scheme = file.metadata.get("tokenizer.ggml.model", "none")
    if not isinstance(scheme, str):
        raise LoadError(f"{file.path}: tokenizer.ggml.model is {type(scheme).__name__}, expected a string")
    if scheme == "none":
        return None
    vocabulary = _Vocabulary(file)
    if scheme in ("llama", "gemma4"):
        tokenizer = _sentencepiece(vocabulary, split_newlines=scheme == "gemma4")
    elif scheme == "gpt2":
        tokenizer = _byte_level(vocabulary)
    else:
        raise LoadError(
            f"{file.path}: tokenizer.ggml.model {scheme!r} is not supported, expected llama, gemma4 or gpt2"
        )
    vocabulary.mark_special(tokenizer)
    vocabulary.add_bos(tokenizer)
    return _wrap(vocabulary, tokenizer)


def _wrap(vocabulary: _Vocabulary, tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    class GgufTokenizer(PreTrainedTokenizerFast):
        # Handing over `tokenizer_object` would copy it through JSON: 3 s for 262144 tokens. A backend that
        # is in place before the base class looks for one is how transformers' own classes do it.
        def __init__(self, **kwargs: Any) -> None:
            self._tokenizer = tokenizer
            super().__init__(**kwargs)

    return GgufTokenizer(
        bos_token=vocabulary.special("bos"),
        eos_token=vocabulary.special("eos"),
        unk_token=vocabulary.special("unknown"),
        pad_token=vocabulary.special("padding"),
        chat_template=vocabulary.chat_template,
        clean_up_tokenization_spaces=False,
    )


def merges_from_scores(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges, best first, that a SentencePiece vocabulary implies: every way to split a token into two tokens.

    SentencePiece keeps no merges; it joins the two neighbours whose union has the highest score. A byte-pair
    model whose merges are ranked by the score of the union does the same.
    """
    known = set(tokens)
    merges = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            if token[:cut] in known and token[cut:] in known:
                merges.append((-score, token[:cut], token[cut:]))
    merges.sort(key=lambda merge: merge[0])
    return [(left, right) for _, left, right in merges]


class _Vocabulary:
    """The tokenizer.* keys of a GGUF file, checked for type and length."""

    def __init__(self, file: GgufFile) -> None:
        self.path, self._metadata = file.path, file.metadata
        self.tokens: list[str] = self._strings("tokenizer.ggml.tokens")
        self.types = self._numbers("tokenizer.ggml.token_type")
        self.chat_template = self._get("tokenizer.chat_template", str, None)

    def _get(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        value = self._metadata.get(key, default)
        if value is ...:
            raise LoadError(f"{self.path}: metadata key {key} is missing")
        if value is not default and not isinstance(value, kind):
            raise LoadError(f"{self.path}: {key} is {type(value).__name__}, expected {kind}")
        return value

    def _strings(self, key: str) -> list[str]:
        values = self._get(key, list)
        if not values:
            raise LoadError(f"{self.path}: {key} is empty")
        return values

    def _numbers(self, key: str) -> list[float]:
        values = self._metadata.get(key)
        if values is None:
            return [1] * len(self.tokens)
        if not hasattr(values, "tolist") or len(values) != len(self.tokens):
            raise LoadError(f"{self.path}: {key} does not hold one number for each of {len(self.tokens)} tokens")
        return values.tolist()

    @property
    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    @property
    def scores(self) -> list[float]:
        return self._numbers("tokenizer.ggml.scores")

    @property
    def merges(self) -> list[tuple[str, str]] | None:
        """The explicit merges: each a string of two tokens and the space between them (a token may begin with one)."""
        if "tokenizer.ggml.merges" not in self._metadata:
            return None
        pairs = []
        for merge in self._strings("tokenizer.ggml.merges"):
            left, space, right = merge[1:].partition(" ")
            if not space:
                raise LoadError(f"{self.path}: tokenizer.ggml.merges holds {merge!r}, expected two tokens")
            pairs.append((merge[:1] + left, right))
        return pairs

    def flag(self, key: str, default: bool) -> bool:
        return self._get(f"tokenizer.ggml.{key}", bool, default)

    def text(self, key: str, default: str) -> str:
        return self._get(f"tokenizer.ggml.{key}", str, default)

    def special(self, role: str) -> str | None:
        """The token with this role (bos, eos, unknown, padding), if the file names one."""
        index = self._get(f"tokenizer.ggml.{role}_token_id", int, None)
        if index is not None and not 0 <= index < len(self.tokens):
            raise LoadError(
                f"{self.path}: tokenizer.ggml.{role}_token_id = {index}, there are {len(self.tokens)} tokens"
            )
        return None if index is None else self.tokens[index]

    def mark_special(self, tokenizer: Tokenizer) -> None:
        """Control tokens stand for themselves and vanish from decoded text; user-defined ones match first."""
        from tokenizers import AddedToken

        def chosen(kind: int) -> list[AddedToken]:
            texts = (token for token, its in zip(self.tokens, self.types, strict=True) if its == kind and token)
            return [AddedToken(text, normalized=False, special=kind == CONTROL) for text in texts]

        tokenizer.add_special_tokens(chosen(CONTROL))
        tokenizer.add_tokens(chosen(USER_DEFINED))

    def add_bos(self, tokenizer: Tokenizer) -> None:
        """Make encode(add_special_tokens=True) begin with BOS where the file wants it."""
        from tokenizers import processors

        bos = self.special("bos")
        default = self.text("model", "") in ("llama", "gemma4")
        if bos is not None and (self.flag("add_bos_token", default) or self.text("model", "") == "gemma4"):
            tokenizer.post_processor = processors.TemplateProcessing(
                single=[bos, "$A"], pair=[bos, "$A", "$B"], special_tokens=[(bos, self.tokens.index(bos))]
            )


def _sentencepiece(vocabulary: _Vocabulary, split_newlines: bool) -> Tokenizer:
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    merges = vocabulary.merges or merges_from_scores(vocabulary.tokens, vocabulary.scores)
    tokenizer = _bpe(
        vocabulary, models, merges, unk_token=vocabulary.special("unknown"), fuse_unk=True, byte_fallback=True
    )
    spaces = normalizers.Replace(" ", SPACE)
    prefixed = vocabulary.flag("add_space_prefix", True)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    if split_newlines:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|[\n]+"), "isolated")
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefixed else []))
    return tokenizer


def _byte_level(vocabulary: _Vocabulary) -> Tokenizer:
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

    pre = vocabulary.text("pre", "default")
    if pre not in _BYTE_LEVEL_SPLITS:
        known = ", ".join(_BYTE_LEVEL_SPLITS)
        raise LoadError(f"{vocabulary.path}: tokenizer.ggml.pre {pre!r} is not supported, expected one of {known}")
    if (merges := vocabulary.merges) is None:
        raise LoadError(f"{vocabulary.path}: metadata key tokenizer.ggml.merges is missing")
    tokenizer = _bpe(vocabulary, models, merges)
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_BYTE_LEVEL_SPLITS[pre]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _bpe(vocabulary: _Vocabulary, models: Any, merges: list[tuple[str, str]], **options: Any) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer(models.BPE(vocab=vocabulary.ids, merges=merges, **options))
    except Exception as error:  # tokenizers raises a bare Exception, e.g. for a merge of tokens that do not exist
        raise LoadError(f"{vocabulary.path}: the vocabulary does not fit its merges: {str(error)[:200]}") from error
