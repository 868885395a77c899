"""A token that is prepared for before it is known: whatever else is asked for, logits are those of other engines."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pytest

from llm_build.runtime.engine import Engine
from llm_build.runtime.loaded_model import LoadedModel
from tests.tvm.conftest import Built


class HostGraph:
    """What TokenGraph does, on a CPU: a launch calls the library."""

    def __init__(self) -> None:
        self.key: Hashable = None
        self.launches = 0

    def capture(self, key: Hashable, calls: Callable[[], tuple[Any, ...]]) -> None:
        self.key, self.calls = key, calls

    def launch(self, key: Hashable) -> tuple[Any, ...] | None:
        if key != self.key:
            return None
        self.launches += 1
        return self.calls()

    def invalidate(self) -> None:
        self.key = None


@pytest.fixture(scope="module")
def case(built: Callable[[str, str], Built]) -> Built:
    return built("grouped", "q0f32")


class Pair:
    """An engine, and one that prepares for the next token after each."""

    def __init__(self, case: Built, sequences: int) -> None:
        self.plain, self.prepares = (Engine.from_folder(case.folder, sequences) for _ in range(2))
        calls = self.prepares._model
        assert isinstance(calls, LoadedModel)
        self.calls, self.graph, self.prepared = calls, HostGraph(), 0
        calls._graph = self.graph

    def same(self, what: Callable[[Engine], Any]) -> Any:
        one, other = what(self.plain), what(self.prepares)
        np.testing.assert_array_equal(one, other)
        return one

    def decode(self, sequence: int, tokens: int) -> None:
        for token in range(tokens):
            self.same(lambda engine, token=token: engine.decode(sequence, (7 + 3 * token) % 200))
            self.calls.prepare(sequence)
            self.prepared += self.calls._prepared is not None


def test_a_prepared_token_changes_no_logits(case: Built):
    pair = Pair(case, 3)
    first = pair.same(lambda engine: engine.add_sequence())
    pair.same(lambda engine: engine.prefill(first, list(range(10))))
    pair.decode(first, 40)
    assert pair.prepared == 40
    assert pair.graph.launches == 40 - 4  # but the first token, and those that begin pages: 16, 32 and 48
    pair.same(lambda engine: engine.rewind(first, 4))
    pair.decode(first, 5)
    pair.same(lambda engine: engine.prefill(first, [3, 4, 5]))
    pair.decode(first, 6)
    pair.same(lambda engine: engine.logits(first, [9, 8]))
    pair.decode(first, 4)
    second = pair.same(lambda engine: engine.add_sequence())
    pair.same(lambda engine: engine.prefill(second, [1, 2]))
    pair.decode(first, 3)
    pair.decode(second, 3)
    pair.same(lambda engine: engine.decode_batch([second, first], [11, 12]))
    pair.same(lambda engine: engine.remove_sequence(first))
    pair.decode(second, 5)
    pair.same(lambda engine: engine.remove_sequence(second))
    third = pair.same(lambda engine: engine.add_sequence())
    pair.decode(third, 20)


def test_it_ends_with_the_context(case: Built):
    pair = Pair(case, 1)
    sequence = pair.same(lambda engine: engine.add_sequence())
    pair.decode(sequence, pair.plain.context)
    pair.same(lambda engine: engine.rewind(sequence, 2))
    pair.decode(sequence, 2)


def test_a_window_is_never_prepared_for(case: Built):
    """What has left a window cannot be brought back, so that a token could not be taken out again."""
    pair = Pair(case, 1)
    pair.calls._slides = True
    sequence = pair.same(lambda engine: engine.add_sequence())
    pair.decode(sequence, 8)
    assert pair.prepared == 0
