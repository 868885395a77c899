"""The one door for JSON that others wrote: config files, indexes, records, statements.

What comes in is bounded by its own size, and whatever is wrong with it is one kind of error with a plain reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_BYTES = 256 << 20  # the largest files of this kind, tokenizers, take 40 MB
MAX_DEPTH = 64  # real files nest 10 deep
_SHOWN = 120  # characters of a name
_MAX_DIGITS = 4300  # Python's own limit: converting more takes quadratic time


class NotJson(ValueError):
    """The text is no JSON that we read; says why, in words that follow "is not JSON: "."""


def parse_json(data: bytes | str, max_depth: int | None = MAX_DEPTH, unique: bool = False) -> Any:
    """The value of a JSON document, UTF-8 (with or without a byte order mark) if it is bytes.

    ``max_depth`` None: whoever asks checks every level anyway. ``unique``: a name that an object has twice is refused;
    without, the last one counts.

    Raises:
        NotJson: it is no JSON, too large, too deep, or has a number of too many digits.
    """
    if len(data) > MAX_BYTES:
        raise NotJson(f"{len(data)} bytes; allowed: up to {MAX_BYTES}")
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        value = json.loads(text, object_pairs_hook=_unique if unique else None)
    except NotJson:
        raise
    except UnicodeDecodeError as error:
        raise NotJson(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise NotJson(str(error)) from error
    except RecursionError as error:
        raise NotJson(f"nested too deep; allowed: {MAX_DEPTH} levels") from error
    except ValueError as error:  # int() of a string that is too long
        raise NotJson(f"a number has more than {_MAX_DIGITS} digits") from error
    if max_depth is not None and text.count("[") + text.count("{") > max_depth:
        _check_depth(value, max_depth)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise NotJson(f"it has {key[:_SHOWN]!r} twice; allowed: once")
            seen.add(key)
    return table


def _check_depth(value: Any, max_depth: int) -> None:
    level = [value]
    for _ in range(max_depth + 1):
        containers = [each for each in level if isinstance(each, (dict, list))]
        if not containers:
            return
        level = [item for each in containers for item in (each.values() if isinstance(each, dict) else each)]
    raise NotJson(f"nested too deep; allowed: {max_depth} levels")


def indented(value: Any) -> bytes:
    """A JSON document for people too, in which numbers that JSON cannot hold are words."""
    return (json.dumps(without_nonfinite(value), indent=1, allow_nan=False) + "\n").encode()


def without_nonfinite(value: Any) -> Any:
    """A JSON value in which numbers that JSON cannot hold are words: "inf", "-inf", "nan"."""
    if isinstance(value, float) and not -_INFINITY < value < _INFINITY:
        return str(value)
    if isinstance(value, Mapping):
        return {key: without_nonfinite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nonfinite(each) for each in value]
    return value


_INFINITY = float("inf")
