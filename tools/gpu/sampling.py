"""The functions between logits and a token, on a device, against numpy; vocabularies of any size go through them."""

from __future__ import annotations

from typing import Any

import numpy as np

from llm_build.runtime.engine import Engine

VOCABULARIES = (7, 3072, 151_936)
SEQUENCES = 3


def check(engine: Engine) -> None:
    """Raises AssertionError for a function that does not do what it says."""
    machine, device = engine._model._machine, engine._model._device
    rng = np.random.default_rng(0)
    check_softmax(machine, device, rng, engine.vocab_size)
    for vocab in VOCABULARIES:
        weights = rng.random((SEQUENCES, vocab)).astype(np.float32) ** 8
        weights[:, :: max(1, vocab // 5)] = weights[0, 0]  # equal ones keep their order
        probs = weights / weights.sum(axis=1, keepdims=True)
        check_order(machine, device, rng, probs)
        check_in_place(machine, device, rng, vocab)


def check_softmax(machine: Any, device: Any, rng: np.random.Generator, vocab: int) -> None:
    logits = rng.standard_normal((SEQUENCES, 1, vocab)).astype(np.float32) * 5
    for heat in (1e-6, 0.7, 2.0):
        temperature = np.full(SEQUENCES, heat, np.float32)
        found = machine["softmax_with_temperature"](device.put(logits), device.put(temperature)).numpy()
        scaled = logits.astype(np.float64) / max(heat, 1e-5)
        power = np.exp(scaled - scaled.max(axis=2, keepdims=True))
        assert np.abs(found - power / power.sum(axis=2, keepdims=True)).max() < 1e-6


def check_order(machine: Any, device: Any, rng: np.random.Generator, probs: np.ndarray) -> None:
    """argsort_probs, sample_with_top_p, sampler_take_probs."""
    result = machine["argsort_probs"](device.put(probs))
    values, tokens = (result[place].numpy() for place in range(2))
    order = np.argsort(-probs, axis=1, kind="stable")
    assert np.array_equal(tokens, order)
    assert np.array_equal(values, np.take_along_axis(probs, order, axis=1))
    which = np.array([0, 2, 1, 1, 0], np.int32)
    uniform, top_p = rng.random(5).astype(np.float32), np.array([0.3, 0.9, 1e-5], np.float32)
    sampled = machine["sample_with_top_p"](
        result[0], result[1], device.put(uniform), device.put(which), device.put(top_p)
    ).numpy()
    for token, row, draw in zip(sampled, which, uniform, strict=True):
        assert near(values[row], tokens[row], int(token), float(top_p[row]), float(draw)), (token, row, draw)
    places = np.array([0, 1, probs.shape[1] + 2], np.int32)
    taken = machine["sampler_take_probs"](
        device.put(probs), result[1], device.put(which), device.put(sampled), device.put(places)
    )
    assert np.array_equal(taken[0].numpy(), probs[which, sampled])
    assert np.array_equal(taken[1].numpy(), values.reshape(-1)[places])
    assert np.array_equal(taken[2].numpy(), tokens.reshape(-1)[places])


def near(values: np.ndarray, tokens: np.ndarray, token: int, top_p: float, draw: float) -> bool:
    """Whether the running sum of exact probabilities reaches the goal at the token, give or take rounding."""
    running = np.cumsum(values.astype(np.float64))
    kept = running[min(int(np.searchsorted(running, top_p - 1e-9)), len(running) - 1)]
    place = int(np.flatnonzero(tokens == token)[0])
    before = running[place - 1] if place else 0.0
    return bool(before - 1e-5 <= kept * draw <= running[place] + 1e-5)


def check_in_place(machine: Any, device: Any, rng: np.random.Generator, vocab: int) -> None:
    """apply_logit_bias, apply_penalty, apply_bitmask."""
    logits = rng.standard_normal((SEQUENCES, vocab)).astype(np.float32)
    held, rows, tokens = device.put(logits), np.array([0, 2], np.int32), np.array([1, vocab - 1], np.int32)
    bias = np.array([2.5, -1.0], np.float32)
    kernel(machine, "apply_logit_bias_inplace")(held, device.put(rows), device.put(tokens), device.put(bias))
    expected = logits.copy()
    expected[rows, tokens] += bias
    assert np.array_equal(held.numpy(), expected)
    penalties = np.array([[0.1, 0.2, 1.5], [0.0, 0.3, 0.5]], np.float32)
    count, sequence = np.array([3, 1], np.int32), np.array([0, 1], np.int32)
    kernel(machine, "apply_penalty_inplace")(
        held, device.put(rows), device.put(sequence), device.put(tokens), device.put(count), device.put(penalties)
    )
    value = expected[rows, tokens] - (penalties[:, 0] + count * penalties[:, 1])
    expected[rows, tokens] = np.where(value < 0, value * penalties[:, 2], value / penalties[:, 2])
    assert np.abs(held.numpy() - expected).max() < 1e-6
    mask = rng.integers(-(1 << 31), 1 << 31, (SEQUENCES, -(-vocab // 32)), dtype=np.int64).astype(np.int32)
    kernel(machine, "apply_bitmask_inplace")(held, device.put(rows), device.put(mask))
    allowed = np.unpackbits(mask.view(np.uint8), axis=1, bitorder="little")[:, :vocab].astype(bool)
    expected[rows] = np.where(allowed[rows], expected[rows], np.finfo(np.float32).min)
    assert np.abs(held.numpy() - expected)[expected > -1e30].max(initial=0) < 1e-6
    assert np.array_equal(held.numpy() < -1e30, expected < -1e30)


def kernel(machine: Any, name: str) -> Any:
    """A kernel that no graph function is around; MLC's runtimes find it in the same way."""
    return machine.module.get_function(name, query_imports=True)
