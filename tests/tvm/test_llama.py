"""The compiled Llama against transformers, both in float32 and with the same (dequantized) weights.

The cache is tested by taking the same tokens through it in several ways.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.tvm.conftest import Built

EXACT = 2e-4  # of the logits' spread
TOKENS = 112
CASES = [
    ("grouped", "q0f32"),
    ("grouped", "q4f16_1"),
    ("odd", "q0f32"),
    ("odd", "q4f32_1"),
    ("narrow", "q0f16"),
    ("wide", "q3f16_1"),
    ("grouped", "q4f16_2"),
]


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, built: Callable[[str, str], Built]) -> Built:
    return built(*request.param)


def tokens_of(case: Built, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, case.architecture["vocab_size"], TOKENS).tolist()


def reference(case: Built, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return case.model(torch.tensor([tokens])).logits[0].numpy()


def check(found: np.ndarray, expected: np.ndarray, all_expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() / all_expected.std() < EXACT


def test_prefill_at_once(case: Built):
    tokens, engine = tokens_of(case), case.engine()
    expected, sequence = reference(case, tokens), engine.add_sequence()
    length = engine.chunk - 1
    check(engine.prefill(sequence, tokens[:length]), expected[length - 1], expected)


def test_prefill_in_chunks_and_all_positions(case: Built):
    tokens, engine = tokens_of(case), case.engine()
    expected, sequence = reference(case, tokens), engine.add_sequence()
    assert 2 * engine.chunk < TOKENS
    check(engine.logits(sequence, tokens), expected, expected)
    engine.remove_sequence(sequence)
    sequence = engine.add_sequence()
    for start in range(0, TOKENS, 7):
        logits = engine.prefill(sequence, tokens[start : start + 7])
        check(logits, expected[min(start + 7, TOKENS) - 1], expected)


def test_decode_32_tokens(case: Built):
    tokens, engine = tokens_of(case), case.engine()
    expected, sequence = reference(case, tokens), engine.add_sequence()
    engine.prefill(sequence, tokens[:9])
    found = np.stack([engine.decode(sequence, token) for token in tokens[9 : 9 + 32]])
    check(found, expected[9 : 9 + 32], expected)


def test_decode_from_the_first_token(case: Built):
    tokens, engine = tokens_of(case), case.engine()
    expected, sequence = reference(case, tokens), engine.add_sequence()
    found = np.stack([engine.decode(sequence, token) for token in tokens[:20]])
    check(found, expected[:20], expected)


def test_two_interleaved_sequences_in_a_batch(case: Built):
    one, two, engine = tokens_of(case), tokens_of(case, 2), case.engine()
    expected = np.stack([reference(case, one), reference(case, two)])
    a, b = engine.add_sequence(), engine.add_sequence()
    engine.prefill(a, one[:5])
    engine.prefill(b, two[:30])
    engine.decode(a, one[5])
    for step in range(20):
        found = engine.decode_batch([b, a], [two[30 + step], one[6 + step]])
        check(found, np.stack([expected[1, 30 + step], expected[0, 6 + step]]), expected)
    engine.remove_sequence(a)
    c = engine.add_sequence()
    check(engine.prefill(c, one), expected[0, -1], expected)
    check(engine.decode(b, two[50]), expected[1, 50], expected)


def test_wrong_weights_are_noticed(built: Callable[[str, str], Built]):
    """The comparison can fail: one norm weight off by 1% is far outside the limit."""
    case = built("grouped", "q0f32")
    tokens, engine = tokens_of(case), case.engine()
    expected, norm = reference(case, tokens), case.model.model.layers[0].input_layernorm.weight
    with torch.no_grad():
        norm[3] *= 1.01
        changed = reference(case, tokens)
        norm[3] /= 1.01
    found = engine.logits(engine.add_sequence(), tokens)
    assert np.abs(found - changed).max() / expected.std() > 2 * EXACT
