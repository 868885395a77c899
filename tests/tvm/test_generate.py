"""Text generation: streaming, sampling and why it ends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llm_build.core.errors import UserError
from llm_build.formats.chat_template import messages_of
from llm_build.runtime.chat import chat_ids, has_chat
from llm_build.runtime.generate import (
    GenerationStats,
    Sampling,
    eos_tokens,
    generate,
    load_tokenizer,
    sample,
    stop_reason,
)
from llm_build.runtime.streaming import Streamer
from tests.tvm.conftest import Built

TEXT = "naïve café — 日本語 🦙🏽 done"


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token per byte (the first 203 of them, so that the tiny model can say them all)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_characters_of_several_tokens_are_given_out_whole(bytes_tokenizer: Path):
    tokenizer = load_tokenizer(bytes_tokenizer)
    streamer, pieces = Streamer(tokenizer), []
    for token in tokenizer.encode(TEXT).ids:
        pieces.append(streamer.add(token))
    assert "".join(pieces) == TEXT
    assert streamer.finish() == ""
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert pieces.count("") > 10


def test_a_character_that_is_never_completed_shows_at_the_end(bytes_tokenizer: Path):
    tokenizer = load_tokenizer(bytes_tokenizer)
    streamer = Streamer(tokenizer)
    given = [streamer.add(token) for token in tokenizer.encode("ab日").ids[:-1]]
    assert "".join(given) == "ab"
    assert streamer.finish() == "\N{REPLACEMENT CHARACTER}"


def test_sampling():
    logits, random = np.array([0, 3, 1, 2], np.float32), np.random.default_rng(0)
    assert sample(logits, Sampling(temperature=0), random) == 1
    assert {sample(logits, Sampling(1, 0.5), random) for _ in range(200)} == {1}
    assert {sample(logits, Sampling(1, 0.8), random) for _ in range(200)} == {1, 3}
    counts = np.bincount([sample(logits, Sampling(1, 1), random) for _ in range(20000)], minlength=4) / 20000
    expected = np.exp(logits) / np.exp(logits).sum()
    assert np.abs(counts - expected).max() < 0.02
    counts = np.bincount([sample(logits, Sampling(0.5, 1), random) for _ in range(20000)], minlength=4) / 20000
    assert abs(counts[1] - np.exp(6) / np.exp(2 * logits).sum()) < 0.02


def test_settings_out_of_range(built: Callable[[str, str], Built], bytes_tokenizer: Path, tmp_path: Path):
    engine = built("grouped", "q0f32").engine()
    for message, words in {
        "temperature: found -1": {"temperature": -1.0},
        "top_p: found 0": {"top_p": 0.0},
        "max_tokens: found 0": {"max_tokens": 0},
    }.items():
        with pytest.raises(UserError, match=message):
            generate(engine, bytes_tokenizer, "!", **words)
    with pytest.raises(UserError, match="the prompt is empty"):
        generate(engine, bytes_tokenizer, "")
    with pytest.raises(UserError, match="the prompt has 128 tokens and the context window 128"):
        generate(engine, bytes_tokenizer, "!" * 128)
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        generate(engine, tmp_path / "tokenizer.json", "!")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not a tokenizer\.json"):
        generate(engine, tmp_path / "tokenizer.json", "!")


def test_generation_is_reproducible_and_ends_for_a_reason(built: Callable[[str, str], Built], bytes_tokenizer: Path):
    engine = built("grouped", "q0f32").engine()

    def text(**words: object) -> tuple[str, GenerationStats]:
        stats = GenerationStats()
        return "".join(generate(engine, bytes_tokenizer, "!abc", stats=stats, **words)), stats  # type: ignore[arg-type]

    one, stats = text(max_tokens=20, seed=3)
    assert (stats.reason, stats.tokens, stats.prompt_tokens) == ("max_tokens", 20, 4)
    assert stats.prefill_seconds > 0
    assert stats.decode_seconds > 0
    assert text(max_tokens=20, seed=3)[0] == one
    assert text(max_tokens=20, seed=4)[0] != one
    greedy, _ = text(max_tokens=20, temperature=0.0)
    ids = load_tokenizer(bytes_tokenizer).encode("!abc").ids
    sequence = engine.add_sequence()
    first = int(engine.prefill(sequence, ids).argmax())
    second = int(engine.decode(sequence, first).argmax())
    engine.remove_sequence(sequence)
    assert greedy.startswith(load_tokenizer(bytes_tokenizer).decode([first]).strip("\N{REPLACEMENT CHARACTER}"))
    cut, stats = text(max_tokens=20, temperature=0.0, eos=[second])
    assert (stats.reason, stats.tokens) == ("eos", 1 if second != first else 0)
    assert len(cut) <= 1
    _, stats = text(max_tokens=1000)
    assert (stats.reason, stats.tokens) == ("context", 128 - 4 + 1)


def test_the_sequence_is_freed_when_the_reader_stops(built: Callable[[str, str], Built], bytes_tokenizer: Path):
    engine = built("grouped", "q0f32").engine()
    for _ in range(5):
        stream = generate(engine, bytes_tokenizer, "!!", max_tokens=50, seed=0)
        next(stream)
        stream.close()
    assert len(engine._lengths) == 0


def test_reasons_and_eos():
    assert stop_reason(5, 5, 10, 100) == "max_tokens"
    assert stop_reason(4, 5, 100, 100) == "context"
    assert stop_reason(4, 5, 99, 100) == ""
    assert eos_tokens({"eos_token_id": 2}) == {2}
    assert eos_tokens({"eos_token_id": [2, 5]}) == {2, 5}
    assert eos_tokens({"eos_token_id": None}) == eos_tokens({}) == set()


CHAT = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}{{ '!' if add_generation_prompt }}"


def test_a_question_is_written_as_the_template_has_it(bytes_tokenizer: Path, tmp_path: Path):
    tokenizer = load_tokenizer(bytes_tokenizer)

    def text() -> str | None:
        ids = chat_ids(tmp_path, tokenizer, messages_of("Why?"))
        return None if ids is None else tokenizer.decode(ids)

    assert (text(), has_chat(tmp_path)) == (None, False)
    native = {"roles": {"user": "U:", "assistant": "A:"}, "role_content_sep": " ", "role_empty_sep": "", "seps": ["\n"]}
    native |= {"system_template": "{system_message}", "system_message": "S.", "add_role_after_system_message": True}
    chat = {"conv_template": {"name": "x", "system_prefix_token_ids": [0], **native}}
    (tmp_path / "mlc-chat-config.json").write_text(json.dumps(chat))
    assert (text(), has_chat(tmp_path)) == (tokenizer.decode([0]) + "S.U: Why?\nA:", True)
    (tmp_path / "chat_template.jinja").write_text(CHAT)
    assert (text(), has_chat(tmp_path)) == ("<user>Why?!", True)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('ask more') }}")
    with pytest.raises(UserError, match=r"chat_template\.jinja: the template refuses: ask more"):
        text()


def test_padding_rows_of_the_vocabulary_are_never_sampled(
    built: Callable[[str, str], Built], bytes_tokenizer: Path, tmp_path: Path
):
    """Rows after active_vocab_size are no tokens; at this temperature every row is as likely as another."""
    engine = built("grouped", "q0f32").engine()
    shutil.copy(bytes_tokenizer, tmp_path / "tokenizer.json")

    def text(active: int) -> str:
        (tmp_path / "mlc-chat-config.json").write_text(json.dumps({"active_vocab_size": active}))
        words = {"max_tokens": 60, "temperature": 100.0, "top_p": 1.0, "seed": 0}
        return "".join(generate(engine, tmp_path / "tokenizer.json", "!", **words))  # type: ignore[arg-type]

    two = set("".join(load_tokenizer(bytes_tokenizer).decode([row]) for row in range(2)))
    assert set(text(2)) <= two
    assert not set(text(engine.vocab_size)) <= two


def test_an_answer_ends_at_stops_of_the_template_too(
    built: Callable[[str, str], Built], bytes_tokenizer: Path, tmp_path: Path
):
    engine = built("grouped", "q0f32").engine()
    shutil.copy(bytes_tokenizer, tmp_path / "tokenizer.json")
    stops = {"conv_template": {"name": "plain", "stop_token_ids": list(range(engine.vocab_size))}}
    (tmp_path / "mlc-chat-config.json").write_text(json.dumps({"eos_token_id": 1, **stops}))
    stats = GenerationStats()
    assert "".join(generate(engine, tmp_path / "tokenizer.json", "!", stats=stats)) == ""
    assert (stats.reason, stats.tokens) == ("eos", 0)
