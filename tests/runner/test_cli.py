"""The command line end to end on a tiny model saved as a Hugging Face directory: what lands on stdout and stderr."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from runner.cli import main

RUNNER = [sys.executable, "-m", "runner"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tokenizer):
    """Qwen3 with two layers, 259 tokens and a long context, with its byte-level tokenizer."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=100_000,
        eos_token_id=257,
        bos_token_id=256,
    )
    folder = tmp_path_factory.mktemp("tiny-model")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(model_dir, capsys):
    """run(*flags) -> (exit code, stdout, stderr) of `generate --model <tiny>` in this process, greedy on the CPU."""

    def go(*flags):
        base = ["generate", "--model", str(model_dir), "--device", "cpu", "--ignore-eos", "--max-new-tokens", "6"]
        code = main([*base, *flags])
        return code, *capsys.readouterr()

    return go


def test_text_on_stdout_and_the_card_on_stderr(run):
    code, out, err = run("--prompt", "hi")
    assert code == 0
    assert out.endswith("\n")
    assert len(out) > 1
    for part in ("3 prompt + 6 generated, context 9", "finish: length", "tok/s", "start-up", "replayed 0/5"):
        assert part in err
    assert "error" not in err


def test_json_is_one_object_and_nothing_else(run):
    code, out, err = run("--prompt", "hi", "--json", "--seed", "5", "--quiet")
    document = json.loads(out)
    assert code == 0
    assert err == ""
    assert document.keys() == {"text", "token_ids", "finish_reason", "stats"}
    assert len(document["token_ids"]) == 6
    assert document["finish_reason"] == "length"
    stats = document["stats"]
    assert (stats["prompt_tokens"], stats["generated_tokens"], stats["ctx_size"], stats["seed"]) == (3, 6, 9, 5)
    assert stats["decode_steps"] == 5
    assert stats["dummy_weights"] is False
    assert 0 < stats["import_s"] + stats["resolve_s"] + stats["load_s"] < stats["startup_s"]


def test_text_and_json_agree_and_ids_make_the_same_prompt(run, tokenizer):
    text = run("--prompt", "hi")[1]
    document = json.loads(run("--prompt", "hi", "--json")[1])
    assert document["text"] + "\n" == text
    ids = ",".join(map(str, tokenizer.encode("hi")))
    assert json.loads(run("--prompt-ids", ids, "--json")[1])["token_ids"] == document["token_ids"]


def test_the_same_seed_gives_the_same_text(run):
    sample = ["--prompt", "hi", "--temperature", "1.5", "--top-k", "50", "--top-p", "0.99", "--json"]
    first = json.loads(run(*sample)[1])
    again = json.loads(run(*sample, "--seed", str(first["stats"]["seed"]))[1])
    other = json.loads(run(*sample, "--seed", str(first["stats"]["seed"] + 1))[1])
    assert again["token_ids"] == first["token_ids"] != other["token_ids"]


def test_the_context_is_refused_or_ended_with_numbers(run):
    code, out, err = run("--prompt", "hello world", "--ctx-size", "8")
    assert (code, out) == (2, "")
    assert "12 tokens" in err
    assert "--ctx-size" in err
    code, out, err = run("--prompt", "hi", "--ctx-size", "5", "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["finish_reason"], len(document["token_ids"])) == ("length", 2)


def test_show_prompt_and_notes_go_to_stderr(run):
    code, out, err = run("--prompt", "hi", "--show-prompt", "--top-k", "5", "--json")
    assert (code, len(json.loads(out)["token_ids"])) == (0, 6)
    assert "prompt: '<bos>hi'" in err
    assert "prompt ids (3): 256," in err
    assert "--top-k has no effect at temperature 0" in err


def test_token_ids_outside_the_vocabulary(run):
    code, out, err = run("--prompt-ids", "1,259")
    assert (code, out) == (2, "")
    assert "token 259 at place 1" in err


def test_weights_without_a_tokenizer_refuse_text_and_stream_ids(model_dir, tmp_path, capsys):
    """The bytes of a text are no stand-in for the token ids of a trained model."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(model_dir / name)
    base = ["generate", "--model", str(tmp_path), "--device", "cpu", "--ignore-eos", "--max-new-tokens", "6"]
    assert main([*base, "--prompt", "hi"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{tmp_path}: found no tokenizer (tokenizer.json" in err
    assert main([*base, "--prompt-ids", "1,2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("[no tokenizer] ")
    assert len(out.removeprefix("[no tokenizer] ").split()) == 6


def test_dummy_weights_are_marked_everywhere_and_stream_ids(run):
    code, out, err = run("--prompt", "hi", "--load-format", "dummy")
    assert code == 0
    assert out.startswith("[dummy weights] ")
    ids = out.removeprefix("[dummy weights] ").split()
    assert len(ids) == 6
    assert all(token.isdigit() for token in ids)
    assert "DUMMY" in err
    document = json.loads(run("--prompt-tokens", "20", "--load-format", "dummy", "--json")[1])
    assert document["stats"]["dummy_weights"] is True
    assert document["stats"]["prompt_tokens"] == 20


def test_a_missing_model_is_one_line_and_verbose_adds_the_traceback(capsys):
    flags = ["generate", "--model", "/nowhere/model", "--prompt", "x"]
    assert main(flags) == 1
    err = capsys.readouterr().err
    assert err == "error: /nowhere/model: no such file or directory\n"
    assert main([*flags, "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_info_describes_the_model_without_reading_its_weights(model_dir, capsys, monkeypatch):
    from models.load.source import StoredTensor

    monkeypatch.setattr(StoredTensor, "read", None)
    assert main(["info", "--model", str(model_dir), "--ctx-size", "100", "--device", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (layer,) = document["layers"]
    assert (layer["kind"], layer["count"], layer["kv_rows"]) == ("full", 2, 100)
    assert layer["kv_bytes"] == document["kv_bytes"] == 2 * 100 * 2 * 2 * 16 * 4
    assert layer["route"]
    assert layer["why"]
    assert document["parameters"] * 4 == document["stored_bytes"] == document["bytes_by_format"]["F32"]
    assert main(["info", "--model", str(model_dir), "--device", "cpu"]) == 0
    assert "full layers" in capsys.readouterr().out


def test_info_counts_tied_weights_once_and_lists_the_catalogue(capsys):
    """On the meta device the tie is broken: 1.4 of Gemma 4's 30.7 billion parameters were counted twice."""
    assert main(["info", "--model", "gemma4_31b", "--load-format", "dummy", "--device", "cpu", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["parameters"] == pytest.approx(30.70e9, rel=1e-3)
    assert [layer["count"] for layer in document["layers"]] == [50, 10]
    assert main(["info", "--json"]) == 0
    names = [model["name"] for model in json.loads(capsys.readouterr().out)["models"]]
    assert {"gemma4-31b", "gemma3-270m", "qwen3-0.6b"} <= set(names)


@pytest.fixture
def start(model_dir):
    """start(*flags, command="generate", **popen) -> a process; of "generate", 90000 tokens from the tiny model."""
    processes = []
    endless = ["--ignore-eos", "--prompt", "hi", "--max-new-tokens", "90000"]

    def go(*flags, command="generate", **options):
        base = [command, "--model", str(model_dir), "--device", "cpu"]
        process = subprocess.Popen(
            [*RUNNER, *base, *(endless if command == "generate" else []), *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            **options,
        )
        processes.append(process)
        return process

    yield go
    for process in processes:
        process.kill()
        process.communicate()


def test_ctrl_c_prints_partial_statistics_and_exits_130(start):
    process = start()
    assert process.stdout.read(20), "streaming has begun"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"finish: cancelled" in err
    assert b"tok/s" in err
    assert b"Traceback" not in err
    assert out.endswith(b"\n")


@pytest.mark.parametrize("command", ["generate", "info"])
def test_ctrl_c_while_loading_is_one_line(start, command):
    process = start(command=command)
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch" not in maps.read_text():  # the command line is read, imports go on
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"error: interrupted\n")


def test_a_closed_pipe_ends_the_run_without_a_word(start):
    process = start("--quiet")
    assert process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == b""


def test_a_full_disk_is_said_and_exits_1(start, model_dir):
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [*RUNNER, "generate", "--model", str(model_dir), "--device", "cpu", "--prompt", "hi", "-n", "3"],
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert result.returncode == 1
    assert result.stderr == b"error: stdout: No space left on device\n"


@pytest.mark.parametrize(("device", "chosen"), [([], []), (["--device", "cuda:0"], [torch.device("cuda:0")])])
def test_calibrate_measures_and_says_where_the_table_lies(capsys, monkeypatch, device, chosen):
    """The measuring itself is kernels.sdpa's and needs a GPU; here it is played.

    torch.cuda.set_device refuses a device without a number, so none is set then.
    """
    import kernels.sdpa.calibrate
    from kernels.sdpa.table import Table, user_path

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    set_to: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", set_to.append)

    def measure(path=None, *, progress):
        progress("1/1 decode")
        return Table("Some GPU", (), {})

    monkeypatch.setattr(kernels.sdpa.calibrate, "calibrate", measure)
    assert main(["calibrate", "--json", *device]) == 0
    assert set_to == chosen
    out, err = capsys.readouterr()
    assert json.loads(out) == {"gpu": "Some GPU", "path": str(user_path("Some GPU")), "shapes": 0}
    assert "1/1 decode" in err
