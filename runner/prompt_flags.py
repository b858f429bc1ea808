"""The prompt as the command line gives it: text, a file, stdin, token ids, or a number of random ones."""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.errors import UsageError
from runner.output import Console

if TYPE_CHECKING:
    from models.load.source import Source


@dataclass(frozen=True)
class Prompt:
    """One of text, ids and count is given. `chat` None: by template if the model has one."""

    text: str | None = None
    ids: tuple[int, ...] | None = None
    count: int | None = None
    chat: bool | None = None
    system: str | None = None

    def token_ids(self, tokenizer: Any | None, source: Source, seed: int, console: Console) -> list[int]:
        """Ids for the model. For dummy weights the bytes of a text stand in, and that is said.

        UsageError for a text where real weights come without a tokenizer.
        """
        vocab_size = source.spec.vocab_size
        if self.ids is not None:
            return list(self.ids)
        if self.count is not None:
            return random.Random(seed).choices(range(vocab_size), k=self.count)
        assert self.text is not None
        if tokenizer is None:
            if source.kind != "dummy":
                raise UsageError(
                    f"{source.path or source.name}: found no tokenizer (tokenizer.json, or a GGUF's own), which a "
                    "prompt of text needs; give --prompt-ids or --prompt-tokens instead"
                )
            if self.chat or self.system is not None:
                raise UsageError("--chat, --system: dummy weights come without a tokenizer and chat template")
            console.say("note: dummy weights come without a tokenizer; the prompt's bytes stand in as token ids")
            return [byte % vocab_size for byte in self.text.encode("utf-8", "surrogateescape")]
        from runner.text import encode_prompt

        return encode_prompt(tokenizer, self.text, chat=self.chat, system=self.system)


def read_prompt(args: argparse.Namespace) -> Prompt:
    """The prompt of a `generate` command line, checked as far as that needs no model. Reads the file or stdin."""
    if args.prompt_ids is not None:
        _no_template(args, "--prompt-ids")
        return Prompt(ids=_parse_ids(args.prompt_ids))
    if args.prompt_tokens is not None:
        _no_template(args, "--prompt-tokens")
        if args.prompt_tokens < 1:
            raise UsageError(f"--prompt-tokens {args.prompt_tokens}: expected at least 1")
        return Prompt(count=args.prompt_tokens)
    text = _read_text(args)
    if not text:
        raise UsageError("the prompt is empty: expected at least one character")
    return Prompt(text=text, chat=args.chat, system=args.system)


def describe_prompt(ids: list[int], tokenizer: Any | None) -> str:
    """The prompt as the model sees it: text with its special tokens, and the ids."""
    shown = f"prompt: {tokenizer.decode(ids, skip_special_tokens=False)!r}\n" if tokenizer is not None else ""
    return f"{shown}prompt ids ({len(ids)}): {','.join(map(str, ids))}\n"


def _read_text(args: argparse.Namespace) -> str:
    if args.prompt_file is None and args.prompt != "-":
        return args.prompt
    flag = "--prompt -" if args.prompt_file is None else f"--prompt-file {args.prompt_file}"
    try:
        if args.prompt_file is None:
            data = sys.stdin.buffer.read()
        else:
            with open(args.prompt_file, "rb") as file:
                data = file.read()
        # An editor ends the last line with a newline that is not meant for the model.
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise UsageError(f"{flag}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{flag}: byte {error.start} is not UTF-8; expected a text file") from error


def _parse_ids(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace(" ", ",").split(",") if part)
    except ValueError as error:
        raise UsageError(f"--prompt-ids {text!r}: expected numbers with commas between them, as in 1,2,3") from error


def _no_template(args: argparse.Namespace, flag: str) -> None:
    if args.chat or args.system is not None:
        raise UsageError(f"{flag} is used as it is: --chat and --system need a prompt of text")
