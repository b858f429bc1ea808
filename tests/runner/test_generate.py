"""One generation against a scripted engine: reasons to stop, text, the clock, and what reaches the engine at all."""

from __future__ import annotations

import itertools

import pytest

from models.errors import RunnerError, UsageError
from runner.config import SamplingConfig
from runner.generate import GenerationStream
from runner.sampling import Sampler


@pytest.fixture
def start(tokenizer, scripted_engine, build_facts):
    """start(text or ids, eos=..., ctx_size=..., clock=..., **sampling) -> (stream, engine that says it)."""

    def make(script, *, prompt="hi", eos=(), ctx_size=4096, tick=lambda: None, clock=None, with_text=True, **sampling):
        if isinstance(script, str):
            script = tokenizer.encode(script, add_special_tokens=False)
        engine = scripted_engine(script, ctx_size=ctx_size, tick=tick)
        sampler = Sampler(SamplingConfig(**sampling), engine.vocab, ctx_size, "cpu")
        ids = prompt if isinstance(prompt, list) else tokenizer.encode(prompt)
        options = {} if clock is None else {"clock": clock}
        stream = GenerationStream(
            engine, tokenizer if with_text else None, ids, sampler, eos, facts=build_facts, **options
        )
        return stream, engine

    return make


def test_length_is_max_new_tokens_and_the_engine_is_asked_for_no_more(start):
    stream, engine = start("abcdefgh", max_new_tokens=5)
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == stream.text == "abcde"
    assert [piece.token_id for piece in pieces] == stream.token_ids
    assert stream.finish_reason == "length"
    assert engine.limit == engine.yielded == 4
    assert engine.calls == ["prepare", "prefill", "begin_decode", "stop"]
    assert stream.stats.replayed_steps == stream.stats.decode_steps == 4


def test_one_token_never_begins_to_decode(start):
    stream, engine = start("abc", max_new_tokens=1)
    assert [piece.text for piece in stream] == ["a"]
    assert "begin_decode" not in engine.calls
    assert stream.stats.decode_tokens_per_s is None


def test_the_context_end_is_a_length_stop(start):
    stream, engine = start("abcdefgh", prompt=[1, 2, 3], ctx_size=8, max_new_tokens=100)
    list(stream)
    assert (stream.text, stream.finish_reason, engine.limit) == ("abcde", "length", 4)


@pytest.mark.parametrize("length", [8, 9, 5000])
def test_a_prompt_that_fills_the_context_is_refused_before_the_engine(start, length):
    with pytest.raises(UsageError, match=rf"{length} tokens.*holds 8.*--ctx-size to {length + 128}"):
        start("abc", prompt=[1] * length, ctx_size=8)


@pytest.mark.parametrize(("prompt", "found"), [([], "no tokens"), ([3, 259], "token 259 at place 1"), ([-1], "-1")])
def test_bad_prompt_ids_are_refused_before_the_engine(start, prompt, found):
    with pytest.raises(UsageError, match=found):
        start("abc", prompt=prompt)


def test_eos_ends_it_and_is_in_the_ids_but_not_in_the_text(start, tokenizer):
    eos = tokenizer.eos_token_id
    script = [*tokenizer.encode("ab", add_special_tokens=False), eos, 5, 6]
    stream, engine = start(script, eos=[999, eos])
    assert [piece.text for piece in stream] == ["a", "b", ""]
    assert (stream.text, stream.token_ids, stream.finish_reason) == ("ab", script[:3], "stop")
    assert engine.yielded == 2
    stream, _ = start(script, eos=[eos], ignore_eos=True, max_new_tokens=5)
    list(stream)
    assert (stream.token_ids, stream.finish_reason) == (script, "length")


def test_eos_as_the_very_first_token(start, tokenizer):
    stream, engine = start([tokenizer.eos_token_id, 5], eos=[tokenizer.eos_token_id])
    assert [piece.text for piece in stream] == [""]
    assert stream.finish_reason == "stop"
    assert "begin_decode" not in engine.calls


def test_stop_string_across_tokens_is_cut_and_nothing_of_it_is_ever_shown(start):
    stream, engine = start("one STAR two STOP three", stop=("STOP", "nowhere"))
    shown = ""
    for piece in stream:
        shown += piece.text
        assert "STO" not in shown
    assert shown == stream.text == "one STAR two "
    assert stream.finish_reason == "stop"
    assert engine.yielded == len("one STAR two STOP") - 1, "the token that completes the stop string is the last"


def test_a_stop_string_that_did_not_come_true_is_shown_at_the_end(start):
    stream, _ = start("one STO", stop=("STOP",), max_new_tokens=7)
    assert "".join(piece.text for piece in stream) == "one STO"
    assert stream.finish_reason == "length"


def test_a_stop_string_that_is_a_special_token_stops_by_id(start, tokenizer):
    """Special tokens decode to nothing, so a stop string naming one would otherwise never match."""
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    stream, _ = start([*tokenizer.encode("a", add_special_tokens=False), turn, 7, 8], stop=("<turn>",))
    list(stream)
    assert (stream.text, stream.finish_reason, len(stream.token_ids)) == ("a", "stop", 2)


def test_characters_are_whole_in_every_piece(start):
    text = "naïve 😀 日本"
    stream, _ = start(text, max_new_tokens=len(text.encode()))
    pieces = [piece.text for piece in stream]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_cancel_finishes_the_token_and_keeps_the_statistics(start):
    stream, engine = start("abcdefgh")
    for piece in stream:
        if piece.text == "c":
            stream.cancel()
    assert (stream.text, stream.finish_reason) == ("abcd", "cancelled")
    assert stream.stats.generated_tokens == 4
    assert engine.calls[-1] == "stop"


def test_cancel_during_prefill_ends_after_the_first_token(start):
    stream, engine = start("abc", tick=lambda: stream.cancel())
    assert [piece.text for piece in stream] == ["a"]
    assert stream.finish_reason == "cancelled"
    assert "begin_decode" not in engine.calls


def test_closing_the_iterator_cancels_but_not_after_the_end(start):
    stream, engine = start("abcdefgh")
    pieces = iter(stream)
    next(pieces)
    pieces.close()
    assert stream.finish_reason == "cancelled"
    assert engine.calls[-1] == "stop"
    stream, _ = start("abc", max_new_tokens=1)
    pieces = iter(stream)
    next(pieces)
    pieces.close()
    assert stream.finish_reason == "length"


@pytest.mark.parametrize("step", [0, 3])
def test_nan_logits_name_the_step(start, step):
    stream, engine = start("abcdefgh")
    engine.nan_at = step
    shown = []
    with pytest.raises(RunnerError, match=f"step {step}.*NaN"):
        shown.extend(piece.text for piece in stream)
    assert stream.finish_reason == "error"
    assert len(stream.token_ids) == step
    assert engine.calls[-1] == "stop"


def test_an_engine_that_ends_early_is_an_error(start):
    stream, _ = start("abc", max_new_tokens=10)
    with pytest.raises(RunnerError, match="after 3 tokens of 10"):
        list(stream)


def test_a_second_iteration_is_refused(start):
    stream, _ = start("abc", max_new_tokens=2)
    list(stream)
    with pytest.raises(RuntimeError, match="once"):
        list(stream)


def test_the_clock_keeps_prefill_and_decode_apart(start):
    """Prefill takes 2 s, every decode step 0.1 s: prefill 4 / 2, decode (5 - 1) / 0.4, whatever prepare cost."""
    now = itertools.count(100)
    clock = {"time": float(next(now))}
    durations = iter([2.0, 0.1, 0.1, 0.1, 0.1])

    def tick():
        clock["time"] += next(durations)

    stream, _ = start("abcde", prompt=[1, 2, 3, 4], tick=tick, clock=lambda: clock["time"], max_new_tokens=5)
    list(stream)
    stats = stream.stats
    assert stats.ttft_ms == pytest.approx(2000)
    assert stats.prefill_tokens_per_s == pytest.approx(2.0)
    assert stats.decode_tokens_per_s == pytest.approx(10.0)
    assert stats.itl_p50_ms == pytest.approx(100)


def test_without_a_tokenizer_there_are_ids_and_no_text(start):
    stream, _ = start([7, 8, 9], prompt=[1], with_text=False, eos=[9], max_new_tokens=9)
    assert [(piece.token_id, piece.text) for piece in stream] == [(7, ""), (8, ""), (9, "")]
    assert stream.finish_reason == "stop"
    with pytest.raises(UsageError, match="--stop"):
        start([7], prompt=[1], with_text=False, stop=("x",))


def test_warm_up_does_not_leak_into_the_repetition_penalty(start):
    """Capture warms up by sampling, which marks tokens as seen; the sequence must begin with the prompt's alone."""
    stream, _ = start("ab", prompt=[1, 2], repetition_penalty=1.1, max_new_tokens=1)
    list(stream)
    assert stream.sampler.seen.nonzero().flatten().tolist() == sorted({1, 2, stream.token_ids[0]})
