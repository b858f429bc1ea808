"""Flags, aliases and refusals of the command line, without a model."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from models.errors import UsageError
from runner.args import normalise, parse
from runner.cli import main, run_config, sampling_flags
from runner.config import RunConfig
from runner.prompt_flags import read_prompt

GENERATE = ["generate", "--model", "m", "--prompt", "hi"]


def test_help_is_quick_and_does_not_import_torch():
    """Starting with torch would cost seconds before the first line of help."""
    code = "import sys, runner.cli; runner.cli.parse(['generate', '-m', 'x', '-p', 'y']); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    times = []
    for _ in range(3):
        started = time.perf_counter()
        result = subprocess.run([sys.executable, "-m", "runner", "--help"], capture_output=True, text=True)
        times.append(time.perf_counter() - started)
        assert result.returncode == 0
        assert "generate" in result.stdout
    assert min(times) < 0.5


def test_hyphens_and_underscores_in_flags_but_not_in_values():
    assert normalise("--cuda_graph") == "--cuda-graph"
    assert normalise("--prompt=a_b --c_d") == "--prompt=a_b --c_d"
    assert normalise("a_b") == "a_b"
    assert normalise("-p_x") == "-p_x"
    args = parse(["generate", "--model=my_model", "--prompt=x_y", "--max_new_tokens", "7", "--no_cuda_graph"])
    assert (args.model, args.prompt, args.max_new_tokens, args.cuda_graph) == ("my_model", "x_y", 7, False)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--n-predict", "3"], "max_new_tokens", 3),
        (["--max-tokens=3"], "max_new_tokens", 3),
        (["-n", "3"], "max_new_tokens", 3),
        (["--max-seq-len", "9"], "ctx_size", 9),
        (["--max-model-len", "9"], "ctx_size", 9),
        (["-c", "9"], "ctx_size", 9),
        (["--temp", "0.5"], "temperature", 0.5),
        (["--repeat-penalty", "1.1"], "repetition_penalty", 1.1),
        (["-s", "-4"], "seed", -4),
        (["--enforce-eager"], "cuda_graph", False),
        (["--cuda_graph"], "cuda_graph", True),
        ([], "cuda_graph", None),
        (["--no-pdl"], "pdl", False),
        (["--raw-prompt"], "chat", False),
        (["--no-chat-template"], "chat", False),
        (["--raw"], "chat", False),
        (["--chat"], "chat", True),
        ([], "chat", None),
        (["-ub", "64"], "prefill_chunk", 64),
        (["--ubatch_size", "64"], "prefill_chunk", 64),
        (["--stop", "a", "--stop", "b_c"], "stop", ["a", "b_c"]),
        (["--attention", "splitk"], "attention", "splitk"),
        (["--fuse", "none"], "fuse", "none"),
        (["--load_format", "dummy"], "load_format", "dummy"),
    ],
    ids=str,
)
def test_flags_and_their_aliases(flags, field, value):
    assert getattr(parse([*GENERATE, *flags]), field) == value


def test_every_field_of_the_configs_has_a_flag():
    """run_config and sampling_flags read the namespace by field name: a new field without a flag would fail here."""
    args = parse([*GENERATE, "--dtype", "bfloat16", "--revision", "r", "--offline"])
    assert run_config(args) == RunConfig("m", dtype="bfloat16", revision="r", offline=True)
    assert {value for value in sampling_flags(args).values() if value} == set()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "command"),
        (["chat"], "invalid choice: 'chat'"),
        (["generate", "--prompt", "x"], "--model"),
        (["generate", "--model", "m"], "--prompt"),
        ([*GENERATE, "--prompt-file", "f"], "not allowed with"),
        ([*GENERATE, "--temprature", "0"], "--temperature"),
        ([*GENERATE, "--max-new", "3"], "--max-new"),
        ([*GENERATE, "stray"], "stray"),
        ([*GENERATE, "--top-k", "many"], "--top-k"),
        ([*GENERATE, "--attention", "fast"], "routed"),
        ([*GENERATE, "--chat", "--raw"], "not allowed with"),
        (["generate", "--model", "m", "--prompt", "--dashes"], "--flag=value"),
        ([*GENERATE, "--temperature", "-1"], "--temperature -1.0"),
        ([*GENERATE, "--max-new-tokens", "0"], "--max-new-tokens 0"),
        ([*GENERATE, "--top-p", "0"], "--top-p 0.0"),
        ([*GENERATE, "--stop", ""], "--stop"),
        ([*GENERATE, "--ctx-size", "0"], "--ctx-size 0"),
        ([*GENERATE, "--prefill-chunk", "0"], "--prefill-chunk 0"),
        (["generate", "--model", "m", "--prompt", ""], "empty"),
        (["generate", "--model", "m", "--prompt-file", "/nowhere/prompt.txt"], "/nowhere/prompt.txt: No such file"),
        (["generate", "--model", "m", "--prompt-ids", "1,x"], "--prompt-ids"),
        (["generate", "--model", "m", "--prompt-tokens", "0"], "--prompt-tokens 0"),
        (["generate", "--model", "m", "--prompt-ids", "1", "--system", "s"], "--system"),
        (["info", "--modle", "m"], "--model"),
        (["calibrate", "--device", "cpu"], "NVIDIA GPU"),
    ],
    ids=str,
)
def test_usage_errors_are_two_lines_at_most_and_exit_with_2(argv, says, capsys):
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.startswith("error: ")
    assert err.count("\n") <= 2


def prompt_of(*flags):
    return read_prompt(parse(["generate", "--model", "m", *flags]))


def test_prompts_from_text_file_stdin_and_ids(tmp_path, monkeypatch):
    assert prompt_of("--prompt=-v --x_y").text == "-v --x_y"
    file = tmp_path / "prompt.txt"
    file.write_bytes("zwei\nZeilen ü\n\n".encode())
    assert prompt_of("-f", str(file)).text == "zwei\nZeilen ü\n", "one final newline goes, no more"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"piped\r\n")))
    assert prompt_of("-p", "-").text == "piped"
    assert prompt_of("--prompt-ids", "1, 2,3").ids == (1, 2, 3)
    file.write_bytes(b"ab\xff")
    with pytest.raises(UsageError, match=r"prompt\.txt: byte 2 is not UTF-8"):
        prompt_of("-f", str(file))


def test_random_prompts_repeat_with_their_seed():
    prompt = prompt_of("--prompt-tokens", "1000")
    source = SimpleNamespace(spec=SimpleNamespace(vocab_size=97))
    ids = prompt.token_ids(None, source, 5, None)
    assert ids == prompt.token_ids(None, source, 5, None)
    assert ids != prompt.token_ids(None, source, 6, None)
    assert set(ids) <= set(range(97))
    assert len(ids) == 1000
