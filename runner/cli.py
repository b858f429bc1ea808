"""The commands: what each reads, runs and prints. Heavy imports happen inside them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from models.errors import RunnerError, UsageError
from runner.args import parse
from runner.card import card
from runner.config import RunConfig, SamplingConfig
from runner.output import (
    INTERRUPTED,
    Console,
    ReaderGone,
    Stdout,
    on_interrupt,
    quieten_libraries,
    unmissed_interrupt,
)
from runner.prompt_flags import describe_prompt, read_prompt
from runner.timing import Stopwatch

if TYPE_CHECKING:
    from models.spec import ModelSpec
    from runner.generate import GenerationStream
    from runner.report import RunStats


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code. 0 done, 1 run or load error, 2 usage, 130 Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    # Before torch loads OpenMP. A thread that spins at a barrier while its partner's core is taken by another program
    # waits out that program's time slice: 16 ms a product instead of 0.1.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    console = Console(quiet="--quiet" in argv, verbose="--verbose" in argv or "-v" in argv)
    try:
        args = parse(argv)
        quieten_libraries(console)
        if getattr(args, "offline", False):
            os.environ["HF_HUB_OFFLINE"] = "1"
        return COMMANDS[args.command](args, console)
    except KeyboardInterrupt:
        console.error("interrupted")
        return INTERRUPTED
    except ReaderGone:
        return 0
    except Exception as error:
        if console.verbose:
            traceback.print_exc()
        console.error(explain(error))
        return error.exit_code if isinstance(error, RunnerError) else 1


def explain(error: Exception) -> str:
    """One or two lines for a person. What is not one of our errors is named by its type: that is a fault of ours."""
    if isinstance(error, RunnerError):
        return str(error)
    first = (str(error).strip().splitlines() or [""])[0]
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of device memory: {first}\nlower --ctx-size or --prefill-chunk, or take a smaller model"
    return f"unexpected {type(error).__name__}: {first} (--verbose shows where)"


def generate(args: argparse.Namespace, console: Console) -> int:
    """Load, stream text to stdout, then the card to stderr (or one JSON object to stdout)."""
    started = time.perf_counter()
    config, flags, prompt = run_config(args), sampling_flags(args), read_prompt(args)
    SamplingConfig(**{name: value for name, value in flags.items() if value is not None})  # refused before the load
    stdout = Stdout(sys.stdout)
    with unmissed_interrupt(), Stopwatch() as imports:
        from runner.api import Runner
        from runner.pipeline import load_source
    with unmissed_interrupt(), Stopwatch() as resolving:
        source = load_source(config)
        tokenizer = source.load_tokenizer()
    source = dataclasses.replace(
        source, tokenizer_loader=lambda: tokenizer
    )  # building one takes seconds: once is enough
    sampling = SamplingConfig.from_defaults(source.generation_defaults, **flags)
    ids = prompt.token_ids(tokenizer, source, sampling.seed, console)
    if args.show_prompt:
        console.say(describe_prompt(ids, tokenizer))
    if config.ctx_size is None:
        config = dataclasses.replace(config, ctx_size=fitting_context(len(ids), sampling, source.spec))
    warn_of_no_effect(sampling, flags, console)
    with unmissed_interrupt():
        runner = Runner.from_config(config, source, console.progress())
    stream = runner.stream_generation(ids, sampling)
    ready_s = time.perf_counter() - started

    label = None
    if tokenizer is None:
        label = "[dummy weights]" if source.kind == "dummy" else "[no tokenizer]"
    with on_interrupt(stream.cancel):
        show(stream, stdout, ids_label=label, as_json=args.json)
    stats = stream.stats.of_process(imports.seconds, resolving.seconds, ready_s)
    console.say(card(stats))
    if args.json:
        stdout.write(json.dumps(as_document(stream, stats)) + "\n")
    return INTERRUPTED if stream.finish_reason == "cancelled" else 0


def show(stream: GenerationStream, stdout: Stdout, *, ids_label: str | None, as_json: bool) -> None:
    """Run the generation. Unless JSON follows, pieces go out as they come: as text, or behind `ids_label` as ids."""
    if ids_label is not None and not as_json:
        stdout.write(ids_label)
    with contextlib.closing(iter(stream)) as pieces:
        for piece in pieces:
            if not as_json:
                stdout.write(piece.text if ids_label is None else f" {piece.token_id}")
    if not as_json:
        stdout.write("\n")


def as_document(stream: GenerationStream, stats: RunStats) -> dict[str, Any]:
    """What --json prints."""
    return {
        "text": stream.text,
        "token_ids": stream.token_ids,
        "finish_reason": stream.finish_reason,
        "stats": stats.to_dict(),
    }


def run_config(args: argparse.Namespace) -> RunConfig:
    """The flags that say how to load and run; each has the name of its field."""
    return RunConfig(**{field.name: getattr(args, field.name) for field in dataclasses.fields(RunConfig)})


def sampling_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The sampling flags as SamplingConfig fields; None where the model's own default holds."""
    flags = {field.name: getattr(args, field.name) for field in dataclasses.fields(SamplingConfig)}
    return flags | {"stop": tuple(args.stop)}


def fitting_context(prompt_tokens: int, sampling: SamplingConfig, spec: ModelSpec) -> int:
    """The context of a run that names none: room for the prompt and all new tokens, within what the model knows."""
    return max(1, min(prompt_tokens + sampling.max_new_tokens, spec.max_positions))


def warn_of_no_effect(sampling: SamplingConfig, flags: dict[str, Any], console: Console) -> None:
    """Filters do nothing where the best token is always taken; say so rather than leave someone to wonder."""
    idle = [name for name in ("top_k", "top_p", "min_p", "seed") if flags[name] is not None]
    if sampling.temperature == 0 and idle:
        names = ", ".join("--" + name.replace("_", "-") for name in idle)
        console.say(f"note: {names} has no effect at temperature 0 (greedy); give --temperature to sample")


def info(args: argparse.Namespace, console: Console) -> int:
    """What a model is made of, or the known models."""
    with unmissed_interrupt():
        from runner.info import describe_catalog, describe_model

        document, text = describe_model(args) if args.model else describe_catalog()
    Stdout(sys.stdout).write(json.dumps(document) + "\n" if args.json else text)
    return 0


def calibrate(args: argparse.Namespace, console: Console) -> int:
    """Measure this GPU's attention routes and keep them for the next runs; stdout gets the file's path."""
    with unmissed_interrupt():
        import torch

        from runner.settings import choose_device

        device = choose_device(args.device or "cuda")
        if device.type != "cuda":
            raise UsageError(f"--device {device}: routes are measured on an NVIDIA GPU; a CPU has only one")
        from kernels.sdpa.calibrate import calibrate as measure
        from kernels.sdpa.table import user_path

    if device.index is not None:
        torch.cuda.set_device(device)
    table = measure(progress=console.say)
    path = str(user_path(table.gpu))
    document = {"gpu": table.gpu, "path": path, "shapes": len(table.rows)}
    Stdout(sys.stdout).write((json.dumps(document) if args.json else path) + "\n")
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace, Console], int]] = {
    "generate": generate,
    "info": info,
    "calibrate": calibrate,
}
