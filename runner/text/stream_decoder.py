"""Token ids to text, one token at a time, never showing half a character."""

from __future__ import annotations

from typing import Any

_REPLACEMENT = "\ufffd"  # what tokenizers put where bytes are not (yet) UTF-8
_LONGEST_PARTIAL = 3  # bytes, hence tokens, of a UTF-8 character that still lacks its last byte
_LONGEST_WAIT = 16  # tokens of undecodable bytes after which waiting for sense is given up


class StreamDecoder:
    """Decodes a growing list of ids through the tokenizer's own decode, over a short sliding window.

    The window begins one step before the text that is still open, because decoders treat the first token specially
    (SentencePiece drops its leading space); `context` are the last prompt ids, for the same reason.
    Special tokens decode to nothing.
    """

    def __init__(self, tokenizer: Any, context: list[int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._window = list(context or [])[-8:]
        self._shown = len(self._decode(self._window))  # characters of the window's text that are out already
        self._closed = len(self._window)  # ids up to here ended on a whole character

    def push(self, token_id: int) -> str:
        """Text that this token completes; empty while a character is still open."""
        self._window.append(token_id)
        text = self._decode(self._window)
        waiting = len(self._window) - self._closed
        if not text.endswith(_REPLACEMENT) or waiting > _LONGEST_WAIT:
            new = text[self._shown :]
            self._slide()
            return new
        whole = text.rstrip(_REPLACEMENT)
        if waiting > _LONGEST_PARTIAL:
            # No character takes this long: beyond the last three the marks are real garbage, and are shown.
            whole = text[: max(len(whole), len(text) - _LONGEST_PARTIAL)]
        new = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        return new

    def flush(self) -> str:
        """What is still open, as replacement characters, once no more tokens can come."""
        new = self._decode(self._window)[self._shown :]
        self._slide()
        return new

    def _slide(self) -> None:
        self._window = self._window[self._closed :]
        self._closed = len(self._window)
        self._shown = len(self._decode(self._window))

    def _decode(self, ids: list[int]) -> str:
        if not ids:
            return ""
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
