"""However a text is cut into tokens, what streams is what the whole decodes to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders

from llm_build.runtime.streaming import Streamer
from tests.weights.tokenizers_of_kinds import byte_fallback, byte_level

MARK = "\N{REPLACEMENT CHARACTER}"
SCRIPTS = [
    "the ",
    "a b",
    "ä",
    "日本",
    "🦙🏽",
    "😀😁😂🤣",
    "ไทย",
    "हिन्दी",
    "عربي",
    "e\N{COMBINING ACUTE ACCENT}",
    "\n\n ",
    "  x",
    "👨‍👩‍👧",
    MARK,
]


def _metaspace() -> Tokenizer:
    """Newer Llama 2 files: the decoder drops the space of the first word."""
    tokenizer = byte_fallback()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", "first")])
    return tokenizer


KINDS = {"byte level": byte_level(), "byte fallback": byte_fallback(), "metaspace": _metaspace()}


def _streamed(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[list[str], str]:
    streamer = Streamer(tokenizer)
    return [streamer.add(id_) for id_ in ids], streamer.finish()


def _bytes_of(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One token per byte."""
    if tokenizer.decoder is not None and tokenizer.token_to_id("<0x00>") is not None:
        return [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in data]
    return [id_ for byte in data for id_ in _letter(tokenizer, byte)]


def _letter(tokenizer: Tokenizer, byte: int) -> list[int]:
    letters = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # GPT-2's alphabet; the rest from 256 on
    others = [other for other in range(256) if other not in letters]
    letter = chr(byte) if byte in letters else chr(256 + others.index(byte))
    return [tokenizer.token_to_id(letter)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_tokens_stream_to_what_they_decode_to(kind: str, data: st.DataObject):
    tokenizer = KINDS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.get_vocab_size() + 3), max_size=40))
    pieces, rest = _streamed(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(text=st.one_of(st.text(max_size=24), st.lists(st.sampled_from(SCRIPTS), max_size=8).map("".join)))
@example(text="😀😁😂🤣")
def test_any_text_streams_without_marks_in_any_split(kind: str, text: str):
    tokenizer = KINDS[kind]
    for ids in (tokenizer.encode(text, add_special_tokens=False).ids, _bytes_of(tokenizer, text.encode())):
        pieces, rest = _streamed(tokenizer, ids)
        whole = tokenizer.decode(ids)
        assert "".join(pieces) + rest == whole
        assert "".join(pieces).count(MARK) <= whole.count(MARK)
        if MARK not in whole:
            assert not any(MARK in piece for piece in pieces)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(raw=st.lists(st.one_of(st.binary(max_size=6), st.sampled_from(SCRIPTS).map(str.encode)), max_size=8))
def test_any_bytes_stream_to_what_they_decode_to(kind: str, raw: list[bytes]):
    tokenizer = KINDS[kind]
    ids = _bytes_of(tokenizer, b"".join(raw))
    pieces, rest = _streamed(tokenizer, ids)
    assert "".join(pieces) + rest == tokenizer.decode(ids)


def test_words_come_as_soon_as_they_are_there():
    for kind in ("byte level", "byte fallback"):
        tokenizer = KINDS[kind]
        ids = tokenizer.encode("a b the a b", add_special_tokens=False).ids
        pieces, rest = _streamed(tokenizer, ids)
        assert (rest, pieces.count("")) == ("", 0), kind
