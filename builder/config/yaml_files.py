"""Files of configuration as text and as data: what cannot be read ends here, with the file's name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llm_build.config.choices import MOST_BYTES
from llm_build.core.errors import UserError
from llm_build.core.small_file import read_small

_MOST_NODES = 100_000
_MOST_DIGITS = 1000
_NUMBERS = re.compile("[0-9a-fA-F_:]+")  # decimal, hexadecimal, or YAML's base 60, whose places a colon parts


def read_text(path: Path) -> str:
    """The text of a choice or a recipe, without a byte order mark. Raises UserError unless it is UTF-8."""
    try:
        text = read_small(path, MOST_BYTES).decode("utf-8-sig")
        check_bounded(path, text)
        return text
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}; allowed: UTF-8",
            "save the file as UTF-8 (editors write other encodings, such as UTF-16 or Latin-1, where they are told to)",
        ) from error


def check_bounded(path: Path, text: str) -> None:
    """UserError for aliases of aliases that stand for more than a file says (copied out, they have no end), and for
    numbers that take longer than a second to read."""
    if len(max(_NUMBERS.findall(text), key=len, default="")) > _MOST_DIGITS:
        raise UserError(f"{path}: has a number of more than {_MOST_DIGITS} digits")
    if "&" in text and "*" in text:
        _check_aliases(path, text)


def _check_aliases(path: Path, text: str) -> None:
    import yaml

    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []
    count = 0
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append((event.anchor, count))
            count += sizes.get(event.anchor or "", 1) if isinstance(event, yaml.AliasEvent) else 1
            if isinstance(event, yaml.ScalarEvent) and event.anchor:
                sizes[event.anchor] = 1
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, before = open_nodes.pop()
                if anchor:
                    sizes[anchor] = count - before
            if count > _MOST_NODES:
                raise UserError(f"{path}: its aliases stand for more than {_MOST_NODES} values", "write them out")
    except yaml.YAMLError:
        return  # who reads it says what is wrong


def invalid_yaml(path: Path | str, error: Exception) -> UserError:
    """The error for a file that a YAML reader refused."""
    return UserError(f"{path}: is not valid YAML: {' '.join(str(error).split())[:300]}")


def read_mapping(path: Path) -> dict[str, Any]:
    """A choice's file as plain data. Raises UserError for what is no mapping in YAML."""
    import yaml

    try:
        value = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise invalid_yaml(path, error) from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}; allowed: a mapping of keys and values")
    return value
