"""What was worked out for one cell of a sweep, kept for the others: they share most of what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class CellMemo:
    """Results by what they follow from: texts and numbers by value, all else by being the same object. For one
    command: a result that follows from files as well is not looked at again. What raises is not kept."""

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[Any, tuple[Any, ...]]] = {}

    def __call__(self, what: str, of: tuple[Any, ...], make: Callable[[], T]) -> T:
        """``what`` names the question, ``of`` is all that the answer follows from."""
        key = (what, *(each if isinstance(each, str | int | None) else id(each) for each in of))
        if key not in self._known:
            self._known[key] = make(), of  # which stays alive, and so keeps its id
        result: T = self._known[key][0]
        return result
