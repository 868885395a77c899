"""The ways through a built artifact: every one of them must give the same logits at the same position.

``one shot``         all positions of a window at once
``prefill``          prefixes of many lengths, also around the cache's page size and the library's own chunk size
``chunked prefill``  a window in pieces that fit neither pages nor chunks
``decode``           a window token by token
``interleaved``      two sequences in one cache, together and in turn, one of them replaced half way
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from llm_build.runtime.engine import PAGE_TOKENS

ONE_SHOT, PREFILL, CHUNKED, DECODE, INTERLEAVED = "one shot", "prefill", "chunked prefill", "decode", "interleaved"
_PIECES_TOKENS = (5, 1, 23, 16, 2, 40)  # of a chunked prefill, over and over
_INTERLEAVED_STEPS = 12  # of each of its parts

Tick = Callable[[str, int], None]  # (path, tokens done in this call)


class Engine(Protocol):
    """What verify needs of a loaded artifact (llm_build.runtime.engine)."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def vocab_size(self) -> int: ...
    def add_sequence(self) -> int: ...
    def remove_sequence(self, seq: int, /) -> None: ...
    def prefill(self, seq: int, tokens: Sequence[int], /) -> np.ndarray: ...
    def logits(self, seq: int, tokens: Sequence[int], /) -> np.ndarray: ...
    def decode(self, seq: int, token: int, /) -> np.ndarray: ...
    def decode_batch(self, seqs: Sequence[int], tokens: Sequence[int], /) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class PathLogits:
    """Logits [len(positions), V] of some positions of one window."""

    path: str
    window: int
    positions: Sequence[int]
    logits: np.ndarray


def run_paths(engine: Engine, tokens_NW: np.ndarray, tick: Tick) -> Iterator[PathLogits]:
    """Run the windows through every path."""
    windows = [[int(token) for token in row] for row in tokens_NW]
    yield from _one_shot(engine, windows, tick)
    yield from _prefill(engine, windows, tick)
    yield from _chunked(engine, len(windows) - 1, windows[-1], tick)
    yield from _decode(engine, windows[0], tick)
    if engine.metadata["max_batch_size"] > 1:
        yield from _interleaved(engine, windows, tick)


def total_tokens(engine: Engine, tokens_NW: np.ndarray) -> int:
    """What ``run_paths`` will tick, in all."""
    count, window = tokens_NW.shape
    several = sum(_interleaved_lengths(window)) if engine.metadata["max_batch_size"] > 1 else 0
    total: int = count * window + sum(_prefix_lengths(engine, window)) + 2 * window + several
    return total


def _one_shot(engine: Engine, windows: list[list[int]], tick: Tick) -> Iterator[PathLogits]:
    for index, window in enumerate(windows):
        seq = engine.add_sequence()
        logits = engine.logits(seq, window)
        engine.remove_sequence(seq)
        tick(ONE_SHOT, len(window))
        yield PathLogits(ONE_SHOT, index, range(len(window)), logits)


def _prefix_lengths(engine: Engine, window: int) -> list[int]:
    chunk: int = engine.metadata["prefill_chunk_size"]
    marks = {1, 2, PAGE_TOKENS - 1, PAGE_TOKENS, PAGE_TOKENS + 1, 3 * PAGE_TOKENS, chunk - 1, chunk, chunk + 1, window}
    return sorted(length for length in marks if 1 <= length <= window)


def _prefill(engine: Engine, windows: list[list[int]], tick: Tick) -> Iterator[PathLogits]:
    for turn, length in enumerate(_prefix_lengths(engine, len(windows[0]))):
        index = turn % len(windows)
        seq = engine.add_sequence()
        logits = engine.prefill(seq, windows[index][:length])
        engine.remove_sequence(seq)
        tick(PREFILL, length)
        yield PathLogits(PREFILL, index, [length - 1], logits[None])


def _chunked(engine: Engine, index: int, window: list[int], tick: Tick) -> Iterator[PathLogits]:
    seq, start, turn = engine.add_sequence(), 0, 0
    while start < len(window):
        stop = min(start + _PIECES_TOKENS[turn % len(_PIECES_TOKENS)], len(window))
        logits = engine.logits(seq, window[start:stop])
        tick(CHUNKED, stop - start)
        yield PathLogits(CHUNKED, index, range(start, stop), logits)
        start, turn = stop, turn + 1
    engine.remove_sequence(seq)


def _decode(engine: Engine, window: list[int], tick: Tick) -> Iterator[PathLogits]:
    seq = engine.add_sequence()
    for position, token in enumerate(window):
        logits = engine.decode(seq, token) if position else engine.prefill(seq, [token])
        tick(DECODE, 1)
        yield PathLogits(DECODE, 0, [position], logits[None])
    engine.remove_sequence(seq)


def _interleaved_lengths(window: int) -> tuple[int, int, int, int]:
    """Tokens of: the first prefill, the second prefill, the decoding steps, the replacing prefill."""
    steps = min(_INTERLEAVED_STEPS, window // 5)  # so that the longer sequence still ends within its window
    return min(3, window // 4), min(2 * PAGE_TOKENS + 5, window // 2), 5 * steps, min(PAGE_TOKENS + 3, window // 2)


def _interleaved(engine: Engine, windows: list[list[int]], tick: Tick) -> Iterator[PathLogits]:
    """Together, then in turn, then with the first sequence removed and its place taken by a new one."""
    first, second, decoded, replaced = _interleaved_lengths(len(windows[0]))
    steps, at = decoded // 5, {}
    a, b = engine.add_sequence(), engine.add_sequence()
    for seq, index, length in ((a, 0, first), (b, 1, second)):
        engine.prefill(seq, windows[index][:length])
        at[seq] = (index, length)
        tick(INTERLEAVED, length)
    for turn in range(2 * steps):
        if turn < steps:
            yield from _decode_together(engine, windows, at)
        else:
            yield from _decode_alone(engine, windows, at, (a, b)[turn % 2])
        tick(INTERLEAVED, 2 if turn < steps else 1)
    engine.remove_sequence(a)
    del at[a]
    c = engine.add_sequence()
    at[c] = (len(windows) - 1, replaced)
    engine.prefill(c, windows[-1][:replaced])
    tick(INTERLEAVED, replaced)
    for _ in range(steps):
        yield from _decode_together(engine, windows, at)
        tick(INTERLEAVED, 2)
    for seq in at:
        engine.remove_sequence(seq)


def _decode_together(engine: Engine, windows: list[list[int]], at: dict[int, tuple[int, int]]) -> Iterator[PathLogits]:
    """One decoding step of all sequences; ``at``: {sequence: (window, next position)}."""
    logits = engine.decode_batch(list(at), [windows[index][position] for index, position in at.values()])
    for row, (seq, (index, position)) in enumerate(list(at.items())):
        at[seq] = (index, position + 1)
        yield PathLogits(INTERLEAVED, index, [position], logits[row][None])


def _decode_alone(
    engine: Engine, windows: list[list[int]], at: dict[int, tuple[int, int]], seq: int
) -> Iterator[PathLogits]:
    index, position = at[seq]
    at[seq] = (index, position + 1)
    yield PathLogits(INTERLEAVED, index, [position], engine.decode(seq, windows[index][position])[None])
