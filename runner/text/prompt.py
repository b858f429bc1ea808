"""Prompt text to token ids: chat template or raw, with exactly one beginning-of-sequence token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.errors import UsageError


def reads_as_chat(tokenizer: Any, chat: bool | None) -> bool:
    """Whether the prompt goes through the chat template: the user's choice, else whether the tokenizer brings one."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if chat and not has_template:
        raise UsageError("--chat: this model's tokenizer has no chat template; use --raw")
    return has_template if chat is None else chat


def encode_prompt(tokenizer: Any, prompt: str, *, chat: bool | None = None, system: str | None = None) -> list[int]:
    """Token ids of a prompt. chat None: by template if there is one. `system` needs the chat template.

    Raises UsageError for an empty prompt, a system text that has nowhere to go, or text that is not Unicode.
    """
    if not prompt:
        raise UsageError("--prompt is empty: expected at least one character")
    for flag, text in (("--prompt", prompt), ("--system", system or "")):
        _check_unicode(flag, text)
    if reads_as_chat(tokenizer, chat):
        return _one_bos(tokenizer, tokenizer.encode(_render(tokenizer, prompt, system), add_special_tokens=False))
    if system is not None:
        raise UsageError("--system needs a chat template: this prompt is raw (model without template, or --raw)")
    return _one_bos(tokenizer, tokenizer.encode(prompt, add_special_tokens=True))


def check_ids(token_ids: Sequence[int], vocab_size: int) -> list[int]:
    """The ids as a list, refused before the GPU sees them when there are none or one is outside the vocabulary."""
    if not token_ids:
        raise UsageError("the prompt has no tokens: expected at least one")
    for place, token in enumerate(token_ids):
        if not 0 <= token < vocab_size:
            raise UsageError(f"prompt token {token} at place {place} is outside the vocabulary of {vocab_size}")
    return list(token_ids)


def ends_generation(tokenizer: Any, eos_ids: Sequence[int], stops: Sequence[str]) -> frozenset[int]:
    """Ids that end a generation: the EOS list, and stop strings that are a special token (never shown as text)."""
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(eos_ids) | {special[stop] for stop in stops if stop in special}


def _render(tokenizer: Any, prompt: str, system: str | None) -> str:
    from jinja2.exceptions import TemplateError

    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        advice = "drop --system or use --raw" if system is not None else "use --raw"
        raise UsageError(f"the model's chat template refuses this prompt ({error}): {advice}") from error


def _one_bos(tokenizer: Any, ids: list[int]) -> list[int]:
    """Templates that spell BOS out and tokenizers that add it must not do both, nor neither."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    wanted = ids[:1] == [bos] or tokenizer.encode("a", add_special_tokens=True)[:1] == [bos]
    rest = next((place for place, token in enumerate(ids) if token != bos), len(ids))
    return [bos] * wanted + ids[rest:]


def _check_unicode(flag: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"{flag}: byte {error.start} of the text is not UTF-8") from error
