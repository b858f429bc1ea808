"""The command line as argparse sees it: flags, aliases and help. Imports nothing heavy, so --help is quick."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from models.errors import UsageError
from runner.config import ATTENTION_MODES, DTYPES, FUSE_MODES, LOAD_FORMATS

EPILOG = """examples:
  python -m runner generate --model gemma3-270m --prompt "The capital of France is" --temperature 0
  python -m runner generate --model gemma4-31b --load-format dummy --prompt-tokens 2401 --max-new-tokens 256
  python -m runner info --model gemma4-31b --ctx-size 32768

Text or JSON goes to stdout, everything else to stderr. Exit codes: 0 done, 1 error, 2 usage, 130 Ctrl-C."""


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += " (a value that begins with '-' is written --flag=value)"
        raise UsageError(f"{message}; see {self.prog} --help")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The namespace of a command line. Raises UsageError; --help and --version print and raise SystemExit(0)."""
    parser = build_parser()
    args, unknown = parser.parse_known_args([normalise(arg) for arg in argv])
    if unknown:
        raise UsageError(_unknown(unknown[0], parser, args.command))
    return args


def normalise(arg: str) -> str:
    """`--cuda_graph=x_y` -> `--cuda-graph=x_y`: long flags take hyphens and underscores alike, values stay."""
    if not arg.startswith("--"):
        return arg
    flag, equals, value = arg.partition("=")
    return flag.replace("_", "-") + equals + value


def build_parser() -> Parser:
    """The parser of `python -m runner`, one subparser a command; the namespace's `command` names it."""
    parser = _parser(Parser, prog="python -m runner", description=_DESCRIPTION, epilog=EPILOG)
    commands = parser.add_subparsers(dest="command", metavar="command", required=True, parser_class=Parser)
    _generate(_parser(commands.add_parser, "generate", help="stream text from a model, then say how fast it was"))
    _info(_parser(commands.add_parser, "info", help="what a model is made of, without loading it; or the known models"))
    _calibrate(
        _parser(commands.add_parser, "calibrate", help="measure which attention kernels are fastest on this GPU")
    )
    return parser


_DESCRIPTION = "Single-stream LLM decode at the memory roof: a Hugging Face model with its slow parts replaced."


def _parser(make: Any, *names: str, **options: Any) -> Any:
    if "help" in options:
        options["description"] = options["help"][0].upper() + options["help"][1:] + "."
    return make(*names, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)


def _generate(parser: Parser) -> None:
    _model(parser, required=True)
    _prompt(parser.add_argument_group("prompt (one of the first four)"))
    _sampling(parser.add_argument_group("sampling (default: the model's generation_config; greedy if it has none)"))
    _machine(parser.add_argument_group("machine"))
    _output(parser)


def _info(parser: Parser) -> None:
    _model(parser, required=False)
    parser.add_argument("--ctx-size", "-c", *_CTX, type=int, metavar="N", help="context for the KV bytes (4096)")
    parser.add_argument("--device", metavar="D", help="cuda, cuda:1 or cpu: whose attention routes to show")
    parser.add_argument("--dtype", choices=DTYPES, help="of weights and caches in memory (bfloat16)")
    _output(parser)


def _calibrate(parser: Parser) -> None:
    parser.add_argument("--device", metavar="D", help="cuda or cuda:1 (default cuda)")
    _output(parser)


_CTX = ("--max-seq-len", "--max-model-len")


def _model(parser: Parser, *, required: bool) -> None:
    where = "a catalogue name, a local directory, a .gguf file or a hub id"
    parser.add_argument("--model", "-m", "--model-path", required=required, metavar="X", help=where)
    parser.add_argument(
        "--load-format", choices=LOAD_FORMATS, default="auto", help="dummy: random weights at the true shape, for speed"
    )
    parser.add_argument("--offline", action="store_true", help="never ask the hub (also HF_HUB_OFFLINE=1)")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id")


def _prompt(group: Any) -> None:
    one = group.add_mutually_exclusive_group(required=True)
    one.add_argument(
        "--prompt", "-p", metavar="TEXT", help="'-' reads stdin; write --prompt=TEXT if it begins with '-'"
    )
    one.add_argument("--prompt-file", "-f", "--file", metavar="PATH", help="UTF-8 text; one final newline is dropped")
    one.add_argument("--prompt-ids", metavar="1,2,3", help="token ids, used as they are")
    one.add_argument("--prompt-tokens", type=int, metavar="N", help="N random token ids (by --seed), for timing")
    chat = group.add_mutually_exclusive_group()
    chat.add_argument(
        "--chat", dest="chat", action="store_true", default=None, help="through the chat template (default if any)"
    )
    chat.add_argument(
        "--raw", "--raw-prompt", "--no-chat-template", dest="chat", action="store_false", help="the text as it is"
    )
    group.add_argument("--system", metavar="TEXT", help="system message of the chat template")
    group.add_argument("--show-prompt", action="store_true", help="print the prompt as the model sees it, on stderr")


def _sampling(group: Any) -> None:
    add = group.add_argument
    add("--max-new-tokens", "-n", "--n-predict", "--max-tokens", type=int, metavar="N", help="default 128")
    add("--temperature", "--temp", type=float, metavar="T", help="0 is exact greedy")
    add("--top-k", type=int, metavar="K", help="0 is off")
    add("--top-p", type=float, metavar="P", help="1 is off")
    add("--min-p", type=float, metavar="P", help="0 is off")
    add("--repetition-penalty", "--repeat-penalty", type=float, metavar="R", help="1 is off")
    add("--seed", "-s", type=int, metavar="S", help="drawn at random and printed if not given")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated")
    add("--ignore-eos", action="store_true", help="go on after the model's end token")


def _machine(group: Any) -> None:
    add = group.add_argument
    add("--device", metavar="D", help="cuda, cuda:1 or cpu (default: cuda where there is one)")
    add("--dtype", choices=DTYPES, help="default: bfloat16 on cuda, float32 on cpu")
    add("--ctx-size", "-c", *_CTX, type=int, metavar="N", help="default: fits prompt and new tokens")
    add("--attention", choices=ATTENTION_MODES, default="routed", help="hf leaves Hugging Face's own (default routed)")
    add(
        "--fuse",
        choices=FUSE_MODES,
        help="layer: decoder layers in fused kernels; all: RoPE inside split-K, too (default on cuda)",
    )
    add(
        "--cuda-graph",
        dest="cuda_graph",
        action="store_true",
        default=None,
        help="replay the decode step (default on cuda)",
    )
    add(
        "--no-cuda-graph",
        "--enforce-eager",
        dest="cuda_graph",
        action="store_false",
        help="the same step, launched eagerly",
    )
    add("--pdl", dest="pdl", action="store_true", default=None, help="programmatic dependent launch (default on SM90+)")
    add("--no-pdl", dest="pdl", action="store_false", help="plain launches")
    add("--prefill-chunk", "--ubatch-size", "-ub", type=int, metavar="N", help="prompt tokens per prefill pass")
    add("--check-tensors", action="store_true", help="look for NaN and Inf in the weights")


def _output(parser: Parser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one JSON object on stdout")
    group.add_argument("--quiet", action="store_true", help="no statistics, progress or warnings on stderr")
    group.add_argument("--verbose", "-v", action="store_true", help="more on stderr, and tracebacks")


def _unknown(flag: str, parser: Parser, command: str) -> str:
    known = {name for names in _options(parser, command) for name in names}
    close = difflib.get_close_matches(flag.partition("=")[0], known, n=2, cutoff=0.6)
    hint = f" Did you mean {' or '.join(close)}?" if close else f" See python -m runner {command} --help"
    return f"{command} does not know {flag!r}.{hint}"


def _options(parser: Parser, command: str) -> list[list[str]]:
    (choice,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [list(action.option_strings) for action in choice.choices[command]._actions]
