"""Fields of files that others wrote, held to their types before anything reads them.

A table says which kind of value each field may hold; ``check_fields`` holds an object to its table, and names the file,
the path of the field, what was found and what is allowed. Every kind has bounds, so that no count in a file decides how
long a build thinks or how much memory it takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_build.core.errors import UserError

_SHOWN = 120  # characters of a value
_LARGEST_FLOAT = 1.7e308
_LONGEST = 1 << 18  # entries of a list: as many as the largest vocabularies have


@dataclass(frozen=True, slots=True)
class Kind:
    """``allowed``: in words that follow "allowed: "."""

    is_right: Callable[[Any], bool]
    allowed: str


def whole(least: int, most: int) -> Kind:
    """A whole number; true and false are none, nor is 1.0."""
    return Kind(lambda value: is_whole(value) and least <= value <= most, f"a whole number from {least} to {most}")


def number(least: float = -_LARGEST_FLOAT, most: float = _LARGEST_FLOAT, above: bool = False) -> Kind:
    """A finite number. ``above``: ``least`` itself is not allowed."""

    def is_right(value: Any) -> bool:
        return is_number(value) and (least < value if above else least <= value) and value <= most

    start = "a finite number" + ("" if least == -_LARGEST_FLOAT else f" {'above' if above else 'from'} {least:g}")
    return Kind(is_right, start if most == _LARGEST_FLOAT else f"{start} to {most:g}")


def list_of(kind: Kind, what: str) -> Kind:
    """``what``: the entries, in words."""

    def is_right(value: Any) -> bool:
        return isinstance(value, list) and len(value) <= _LONGEST and all(map(kind.is_right, value))

    return Kind(is_right, f"a list of {what}")


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold. (JSON has 1e400, and whole numbers of any length.)"""
    return (is_whole(value) or isinstance(value, float)) and -_LARGEST_FLOAT <= value <= _LARGEST_FLOAT


FLAG = Kind(lambda value: isinstance(value, bool), "true or false")
TEXT = Kind(lambda value: isinstance(value, str), "a string")
OBJECT = Kind(lambda value: isinstance(value, Mapping), "an object")
ABOVE_ZERO = number(0.0, above=True)


def check_fields(where: str, values: Mapping[str, Any], table: Mapping[str, Kind]) -> None:
    """UserError for a field of another kind than ``table`` says; null is a field that is not given.

    Args:
        where: "<file>: " and the path of the object with a dot, "config.json: rope_scaling.".
    """
    for key, kind in table.items():
        if (value := values.get(key)) is not None and not kind.is_right(value):
            raise UserError(f"{where}{key}: found {show_python(value)}; allowed: {kind.allowed}")


def require(is_right: bool, where: str, found: Any, allowed: str) -> None:
    """UserError for a field of another type than it must have: ``where`` is "<file>: <path of the field>"."""
    if not is_right:
        raise UserError(f"{where} is {show(found)}; allowed: {allowed}")


def show(value: Any) -> str:
    """A value as JSON, cut short."""
    return _cut(json.dumps(value, ensure_ascii=False, default=str))


def show_python(value: Any) -> str:
    """A value as recipes and their overrides are read back, cut short."""
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
