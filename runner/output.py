"""Who may write where: stdout carries text or JSON alone, stderr everything said about it.

A reader that has closed the pipe ends a run quietly; a full disk is an error.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TextIO

from models.errors import RunnerError

INTERRUPTED = 130


class ReaderGone(Exception):
    """The other end of stdout is closed (`| head`): stop without a word."""


class Stdout:
    """Generated text or one JSON document, flushed as it comes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a Latin-1 terminal shows ? for what it lacks; that is no reason to die

    def write(self, text: str) -> None:
        """Raises ReaderGone if nobody reads any more, RunnerError if the disk is full or the stream otherwise fails."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError as error:
            _silence_exit(self._stream)
            raise ReaderGone from error
        except OSError as error:
            _silence_exit(self._stream)
            raise RunnerError(f"stdout: {error.strerror or error}") from error


class Console:
    """What is said to people on stderr."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False, stream: TextIO | None = None) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self._stream = stream or sys.stderr

    def say(self, text: str) -> None:
        """A notice or statistics; --quiet drops it."""
        if not self.quiet:
            self._write(text if text.endswith("\n") else text + "\n")

    def error(self, text: str) -> None:
        """Why the run failed; never dropped."""
        self._write(f"error: {text}\n")

    def progress(self) -> Callable[[int, int], None] | None:
        """A bar to call with (bytes done, bytes in all); None unless a person is looking at a terminal."""
        return None if self.quiet or not self._stream.isatty() else _Bar(self._write)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # stderr is closed: there is nobody left to tell
            self._stream.write(text)
            self._stream.flush()


class _Bar:
    """One line, redrawn at most ten times a second: percent, GB done, GB/s."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._started = time.perf_counter()
        self._drawn = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        if done < total and now - self._drawn < 0.1:
            return
        self._drawn = now
        share = done / total if total else 1.0
        rate = done / 1e9 / max(now - self._started, 1e-9)
        bar = "#" * round(share * 24)
        end = "\r\033[K" if done >= total else ""  # the finished bar goes: the card says the same
        self._write(f"\rloading [{bar:<24}] {share:4.0%} {done / 1e9:.2f} GB, {rate:.2f} GB/s{end}")


def quieten_libraries(console: Console) -> None:
    """Libraries log to stderr only from warnings up (--verbose: all of it) and draw no bars where nobody sees them.

    Call it before transformers and huggingface_hub are imported: they read the environment once.
    """
    level = logging.DEBUG if console.verbose else logging.ERROR if console.quiet else logging.WARNING
    logging.basicConfig(level=max(level, logging.WARNING), format="%(levelname)s: %(message)s")
    for package in ("runner", "models", "kernels"):
        logging.getLogger(package).setLevel(level)
    if not console.verbose:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if console.progress() is None:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@contextlib.contextmanager
def on_interrupt(cancel: Callable[[], None]) -> Iterator[None]:
    """Within the block the first Ctrl-C calls `cancel`, the second ends the process at once with exit code 130."""
    presses = 0

    def handle(_signal: int, _frame: object) -> None:
        nonlocal presses
        presses += 1
        if presses > 1:
            os._exit(INTERRUPTED)
        cancel()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def unmissed_interrupt() -> Iterator[None]:
    """Within the block Ctrl-C raises KeyboardInterrupt; if what runs there swallows it, the end of the block raises it.

    Python raises it wherever it happens to be, which during imports may be a callback or a bare except of a library.
    """
    pressed = False

    def handle(_signal: int, _frame: object) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt


def _silence_exit(stream: TextIO) -> None:
    """Point the descriptor at /dev/null: what is still buffered must not raise again at the last flush."""
    with contextlib.suppress(OSError, ValueError):  # not a real file: nothing will be flushed
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
