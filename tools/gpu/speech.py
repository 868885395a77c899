"""Greedy text, on any device."""

from __future__ import annotations

import numpy as np

from llm_build.runtime.engine import Engine


def greedy(engine: Engine, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """The likeliest token, over and over, and by how much it was the likeliest."""
    sequence, ids, margins = engine.add_sequence(), [], []
    logits = engine.prefill(sequence, prompt)
    for _ in range(count):
        second, first = np.sort(logits)[-2:]
        ids.append(int(logits.argmax()))
        margins.append(float(first - second))
        logits = engine.decode(sequence, ids[-1])
    engine.remove_sequence(sequence)
    return ids, margins
