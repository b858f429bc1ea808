"""stdout and stderr at their worst: closed readers, full disks, terminals, closed stderr, Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal

import pytest

from models.errors import LoadError, RunnerError
from runner.cli import explain
from runner.output import Console, ReaderGone, Stdout, on_interrupt, unmissed_interrupt


class Failing(io.StringIO):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_closed_reader_is_no_error_and_a_full_disk_is():
    with pytest.raises(ReaderGone):
        Stdout(Failing(errno.EPIPE)).write("x")
    with pytest.raises(RunnerError, match="stdout: No space left on device"):
        Stdout(Failing(errno.ENOSPC)).write("x")


def test_a_terminal_that_lacks_a_character_shows_a_mark():
    raw = io.BytesIO()
    terminal = io.TextIOWrapper(raw, encoding="latin-1")
    Stdout(terminal).write("für 5 €")
    assert raw.getvalue() == "für 5 ?".encode("latin-1")


def test_a_closed_stderr_does_not_end_the_run():
    Console(stream=Failing(errno.EPIPE)).say("x")


def test_quiet_drops_notices_but_no_errors():
    stream = io.StringIO()
    console = Console(quiet=True, stream=stream)
    console.say("statistics")
    console.error("reason")
    assert stream.getvalue() == "error: reason\n"


def test_a_progress_bar_only_on_a_terminal():
    assert Console(stream=io.StringIO()).progress() is None
    assert Console(stream=Terminal(), quiet=True).progress() is None
    stream = Terminal()
    bar = Console(stream=stream).progress()
    assert bar is not None
    bar(500_000_000, 1_000_000_000)
    bar(1_000_000_000, 1_000_000_000)
    assert "50% 0.50 GB" in stream.getvalue()
    assert stream.getvalue().endswith("\r\033[K"), "the finished bar leaves no trace"


def test_first_interrupt_cancels_and_the_handler_is_put_back(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    calls = []

    def leave(code: int) -> None:
        raise SystemExit(code)  # os._exit does not come back either

    monkeypatch.setattr(os, "_exit", leave)
    with on_interrupt(lambda: calls.append("cancel")):
        signal.raise_signal(signal.SIGINT)
        assert calls == ["cancel"]
        with pytest.raises(SystemExit, match="130"):
            signal.raise_signal(signal.SIGINT)
        assert calls == ["cancel"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_that_a_library_swallows_is_raised_at_the_end():
    before = signal.getsignal(signal.SIGINT)
    reached = []

    def press(*, swallow: bool) -> None:
        with unmissed_interrupt():
            with contextlib.suppress(*[KeyboardInterrupt] * swallow):
                signal.raise_signal(signal.SIGINT)
            reached.append(swallow)

    for swallow in (True, False):
        with pytest.raises(KeyboardInterrupt):
            press(swallow=swallow)
        assert signal.getsignal(signal.SIGINT) is before
    assert reached == [True]
    with unmissed_interrupt():
        pass


def test_errors_are_explained_in_two_lines():
    assert explain(LoadError("model.gguf: bad magic")) == "model.gguf: bad magic"

    class OutOfMemoryError(RuntimeError):
        pass

    text = explain(OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more\nand more"))
    assert "--ctx-size" in text
    assert text.count("\n") == 1
    assert explain(KeyError("x")) == "unexpected KeyError: 'x' (--verbose shows where)"
