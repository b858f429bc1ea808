"""Numbers of the report against counts made by hand or by numpy."""

from __future__ import annotations

import json
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.spec import AttentionSpec, ModelSpec
from runner import work
from runner.card import card
from runner.report import peak_host_bytes, summarise
from runner.timing import StartupTimes, Stopwatch, TokenTimes, mean, percentile, stddev

SAMPLES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30)
TIMES = TokenTimes(prompt_tokens=10, started=100.0, arrivals=(102.0, 102.5, 103.0, 104.0))


@given(SAMPLES, st.floats(0, 100))
def test_percentile_is_numpys(samples, percent):
    assert percentile(samples, percent) == pytest.approx(np.percentile(samples, percent), rel=1e-9, abs=1e-6)


@given(SAMPLES)
def test_mean_and_stddev(samples):
    assert mean(samples) == pytest.approx(statistics.fmean(samples), abs=1e-9)
    assert stddev(samples) == pytest.approx(statistics.stdev(samples) if len(samples) > 1 else 0.0, rel=1e-6, abs=1e-6)


def test_stopwatch_measures_the_block_even_if_it_fails():
    ticks = iter([1.0, 3.5])
    watch = Stopwatch(lambda: next(ticks))
    with pytest.raises(KeyError), watch:
        raise KeyError
    assert watch.seconds == 2.5


def test_rates_keep_the_first_token_out_of_decode():
    assert TIMES.ttft_s == 2.0
    assert TIMES.prefill_rate == 5.0
    assert TIMES.decode_rate == 3 / 2.0
    assert TIMES.intervals == (0.5, 0.5, 1.0)
    single = TokenTimes(10, 0.0, (1.0,))
    assert (single.decode_rate, single.decode_s, single.prefill_rate) == (None, None, 10.0)
    assert TokenTimes(10, 0.0, ()).ttft_s is None


def test_decode_bytes_of_gemma_4_31b():
    """The number that every MBU of this project rests on: 61.4 GB of bf16 matrices a token."""
    sliding = AttentionSpec("sliding", 32, 16, 256, 1.0, window=1024)
    full = AttentionSpec("full", 32, 4, 512, 1.0, value_is_key=True)
    layers = ((sliding,) * 5 + (full,)) * 10
    spec = ModelSpec("gemma4", layers, 5376, 21504, 262144, 262144, True)
    assert work.decode_weights(spec) * 2 == pytest.approx(61.4e9, rel=1e-3)


def brute_pairs(length: int, window: int | None) -> int:
    return sum(1 for i in range(length) for j in range(i + 1) if window is None or j > i - window)


@pytest.mark.parametrize("window", [None, 1, 8, 16, 40])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 33])
def test_prefill_flops_count_what_each_query_sees(length, window):
    layer = AttentionSpec("full", 4, 2, 8, 1.0, window=window)
    spec = ModelSpec("qwen3", (layer,), 32, 64, 100, 512, True)
    matrices = 32 * 4 * 8 * 2 + 32 * 2 * 8 * 2 + 3 * 32 * 64
    attention = 4 * 8 * 2 * brute_pairs(length, window)  # query times keys, and weights times values
    assert work.prefill_flops(spec, length) == 2 * (length * matrices + 32 * 100 + attention)


def test_mbu_and_mfu_from_measured_ceilings(build_facts):
    facts = build_facts(read_bandwidth=1e6, matmul_rate=1e9)
    stats = summarise(facts, TIMES, "length", 7, 3)
    spec = facts.spec
    # Contexts 11, 12, 13 over two layers of 2 KV heads, head_dim 8, keys and values, fp32; none fills the window of 16.
    kv = (11 + 12 + 13) / 3 * 2 * 2 * 8 * 2 * 4
    assert stats.bytes_per_token == pytest.approx(work.decode_weights(spec) * 4 + kv)
    assert stats.mbu == pytest.approx(stats.bytes_per_token / (2.0 / 3) / 1e6)
    assert stats.mfu_prefill == pytest.approx(work.prefill_flops(spec, 10) / 2.0 / 1e9)
    assert "mbu" not in stats.missing
    packed = summarise(build_facts(read_bandwidth=1e6, weight_bytes=1000), TIMES, "length", 7, 3)
    assert packed.bytes_per_token == pytest.approx(1000 + kv)


def test_what_was_not_measured_says_why(build_facts):
    stats = summarise(build_facts(), TIMES, "length", 7, 0)
    assert stats.mbu is None
    assert stats.missing["mbu"] == "no measured read bandwidth for cpu"
    assert "MBU          not computed: no measured read bandwidth for cpu" in card(stats)
    short = summarise(build_facts(read_bandwidth=1e6, matmul_rate=1e9), TokenTimes(5, 0.0, ()), "error", 7, 0)
    assert short.missing.keys() == {"mbu", "mfu_prefill", "peak_memory"}
    assert "no token was generated" in card(short)


def test_the_card_fits_a_screen_and_says_everything(build_facts):
    facts = build_facts(
        stored_bytes=4_000_000_000,
        startup=StartupTimes(load_s=2.0, compile_s=0.5, capture_s=0.25),
        peak_memory=3 * 2**30,
        cuda_graph="on",
    )
    text = card(summarise(facts, TIMES, "length", 1234, 3).of_process(import_s=1.5, resolve_s=1.25, ready_s=5.0))
    lines = text.splitlines()
    assert len(lines) <= 24
    for part in (
        "5.75 s in all, import 1.50 s, resolve 1.25 s, load 2.00 s (2.00 GB/s), compile 0.50 s, capture 0.25 s",
        "10 prompt + 4 generated, context 4096, batch 1, finish: length, seed 1234",
        "replayed 3/3 decode steps",
        "5.0 tok/s, first token after 2000.0 ms",
        "1.50 tok/s; latency p50 500.0 p90 900.0 p99 990.0 ms",
        "3.00 GiB on the device",
        "sliding    1 x twin: no GPU",
    ):
        assert part in text
    assert "DUMMY" not in text


def test_dummy_weights_are_marked_first_of_all(build_facts):
    facts = build_facts(dummy_weights=True, stored_bytes=4_000_000_000, startup=StartupTimes(load_s=0.1))
    stats = summarise(facts, TIMES, "length", 0, 0)
    assert "load 0.10 s" in card(stats)
    assert "GB/s" not in card(stats)
    assert "made on the device" in stats.missing["load_gb_per_s"]
    assert card(stats).splitlines()[0].startswith("weights      DUMMY")
    assert stats.to_dict()["dummy_weights"] is True


def test_the_record_is_json(build_facts):
    stats = summarise(build_facts(), TIMES, "stop", 3, 0)
    assert json.loads(json.dumps(stats.to_dict())) == stats.to_dict()


def test_peak_host_memory_is_in_bytes():
    held = bytearray(64 << 20)
    assert len(held) < peak_host_bytes() < 1 << 40
