"""Prompts to ids, ids to streamed text, stop strings: against whole-string references."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import UsageError
from runner.text import StopMatcher, StreamDecoder, encode_prompt, ends_generation, reads_as_chat

CHAT = "{{ bos_token }}{% for m in messages %}<turn>{{ m.role }}:{{ m.content }}{% endfor %}<turn>model:"
CHAT_WITHOUT_BOS = CHAT.removeprefix("{{ bos_token }}")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT


@pytest.fixture(scope="module")
def byte_fallback():
    """A SentencePiece-style tokenizer (Gemma, Llama): `▁` for spaces, and <0xNN> tokens for what it does not know."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "a", "é"]
    raw = Tokenizer(models.BPE(vocab={p: n for n, p in enumerate(pieces)}, merges=[], byte_fallback=True))
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


def stream(tokenizer, ids, context=()):
    decoder = StreamDecoder(tokenizer, list(context))
    pieces = [decoder.push(token) for token in ids]
    return [*pieces, decoder.flush()]


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_streamed_text_is_the_whole_text(tokenizer, text):
    pieces = stream(tokenizer, tokenizer.encode(text, add_special_tokens=False))
    assert "".join(pieces) == text
    assert text.count("\ufffd") == "".join(pieces).count("\ufffd")


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=20))
def test_byte_fallback_tokens_give_the_whole_text(byte_fallback, text):
    """Each byte is a token of its own, and a run with an unfinished character decodes to garbage as a whole."""
    ids = [1 + byte for byte in text.encode()]
    assert "".join(stream(byte_fallback, ids, context=[byte_fallback.convert_tokens_to_ids("a")])) == text


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=40))
def test_bytes_that_are_no_text_end_and_never_raise(tokenizer, data):
    """A model may emit any bytes: the whole characters in them come out, in order, the rest as replacement marks."""
    table = {byte: tokenizer.convert_tokens_to_ids(piece) for byte, piece in _byte_pieces().items()}
    text = "".join(stream(tokenizer, [table[byte] for byte in data]))
    assert text == data.decode("utf-8", errors="replace")


def _byte_pieces() -> dict[int, str]:
    """The byte-level alphabet of GPT-2: printable bytes stand for themselves, the others are moved above 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def test_garbage_is_shown_before_the_end(tokenizer):
    """A model stuck on a stray continuation byte must be seen to be stuck, not look as if it hung."""
    stray = tokenizer.convert_tokens_to_ids(_byte_pieces()[0x80])
    decoder = StreamDecoder(tokenizer)
    assert "".join(decoder.push(stray) for _ in range(40)).count("\ufffd") > 20


def test_the_space_between_prompt_and_answer_survives(byte_fallback):
    """SentencePiece decoders drop a leading space; the answer does not lead, the prompt does."""
    a, space_a = byte_fallback.convert_tokens_to_ids(["a", "▁a"])
    assert "".join(stream(byte_fallback, [space_a, a], context=[a])) == " aa"
    assert "".join(stream(byte_fallback, [space_a, a])) == "aa"


def test_special_tokens_are_not_text(tokenizer):
    ids = tokenizer.encode("ab<turn>c<eos>", add_special_tokens=False)
    assert "".join(stream(tokenizer, ids)) == "abc"


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(st.text(alphabet="abc", max_size=4), max_size=12),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
)
def test_stop_matcher_equals_search_in_the_whole_text(pieces, stops):
    """What is shown is the text up to the first stop to complete, however the text was cut into pieces."""
    matcher = StopMatcher(tuple(stops))
    shown = ""
    for piece in pieces:
        shown += matcher.feed(piece)
    held = matcher.flush()
    text = "".join(pieces)
    if matcher.matched is None:
        assert not any(stop in text for stop in stops)
        assert shown + held == text
        assert len(held) < max(map(len, stops), default=1)
    else:
        assert text.startswith(shown + matcher.matched)
        assert not any(stop in shown for stop in stops)
        assert held == ""


def test_only_what_could_become_a_stop_is_held_back():
    matcher = StopMatcher(("</s>",))
    assert matcher.feed("a <") == "a "
    assert matcher.feed("b") == "<b"
    assert matcher.feed("</") == ""
    assert matcher.feed("s> more") == ""
    assert matcher.matched == "</s>"


def test_raw_prompt_has_one_bos(tokenizer, build_tokenizer):
    bos = tokenizer.bos_token_id
    plain = tokenizer.encode("hi", add_special_tokens=False)
    assert encode_prompt(tokenizer, "hi") == [bos, *plain]
    assert encode_prompt(tokenizer, "<bos>hi") == [bos, *plain], "typed by hand and added: still one"
    assert encode_prompt(build_tokenizer(adds_bos=False), "hi") == plain


@pytest.mark.parametrize("adds_bos", [True, False])
def test_chat_prompt_has_one_bos(build_tokenizer, adds_bos):
    tokenizer = build_tokenizer(adds_bos=adds_bos, chat_template=CHAT)
    ids = encode_prompt(tokenizer, "hi", system="be brief")
    assert tokenizer.decode(ids) == "<bos><turn>system:be brief<turn>user:hi<turn>model:"
    assert encode_prompt(tokenizer, "hi", chat=False)[-2:] == tokenizer.encode("hi", add_special_tokens=False)
    without = build_tokenizer(adds_bos=adds_bos, chat_template=CHAT_WITHOUT_BOS)
    assert encode_prompt(without, "hi").count(without.bos_token_id) == int(adds_bos)


def test_the_template_decides_between_chat_and_raw(tokenizer, build_tokenizer):
    assert not reads_as_chat(tokenizer, None)
    assert reads_as_chat(build_tokenizer(chat_template=CHAT), None)
    assert not reads_as_chat(build_tokenizer(chat_template=CHAT), False)
    with pytest.raises(UsageError, match="--raw"):
        reads_as_chat(tokenizer, True)


def test_refused_prompts_say_what_to_do(tokenizer, build_tokenizer):
    with pytest.raises(UsageError, match="empty"):
        encode_prompt(tokenizer, "")
    with pytest.raises(UsageError, match="--system needs"):
        encode_prompt(tokenizer, "hi", system="be brief")
    with pytest.raises(UsageError, match=r"no system role.*drop --system"):
        encode_prompt(build_tokenizer(chat_template=NO_SYSTEM), "hi", system="be brief")
    with pytest.raises(UsageError, match="--prompt: byte 1"):
        encode_prompt(tokenizer, "a\udcff")


def test_ids_that_end_a_generation(tokenizer):
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    assert ends_generation(tokenizer, [1, 2], ["x", "<turn>"]) == {1, 2, turn}
    assert ends_generation(tokenizer, [], ["<turn> "]) == set()
