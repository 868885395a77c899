"""Names of files that come from outside, in records, locks, statements and indexes: judged here and nowhere else.

A name is a path below some folder, "a/b" at most: whatever else it is, it leads out of the folder somewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeGuard

# An empty part (so a leading or trailing slash too), "." or "..", a backslash, NUL, or a line break.
_OUTSIDE = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\\\0\n\r]")
_DIGEST = re.compile(r"[a-z0-9]+:[0-9a-f]+")
_LONGEST_BYTES = 255  # of a file's name, on all systems that are in use
_HEX = re.compile(r"[0-9a-f]+")


def is_inside(name: object) -> TypeGuard[str]:
    """Whether a name stays below the folder that it is joined to, as far as its text goes."""
    return isinstance(name, str) and not _OUTSIDE.search(name)


def are_inside(names: Iterable[object]) -> bool:
    """is_inside of each, in one go: a record of a checkpoint has thousands."""
    names = list(names)
    if not all(type(name) is str for name in names):
        return False
    joined = "/x/".join(names)  # type: ignore[arg-type]
    return not names or not _OUTSIDE.search(joined)


def is_plain(name: object) -> TypeGuard[str]:
    """Whether it names a file or folder right in the folder that it is joined to, and a file system holds the name."""
    return is_inside(name) and "/" not in name and len(name.encode("utf-8", "replace")) <= _LONGEST_BYTES


def is_digest(text: object) -> TypeGuard[str]:
    """Whether it is "<algorithm>:<hex>": blobs are found by it."""
    return isinstance(text, str) and bool(_DIGEST.fullmatch(text))


def are_digests(texts: Iterable[object]) -> bool:
    return all(map(is_digest, texts))


def is_key(text: object) -> TypeGuard[str]:
    """Whether it is the key of a step, hex: records are found by it."""
    return isinstance(text, str) and bool(_HEX.fullmatch(text))


def crosses_link(folder: Path, name: str) -> bool:
    """Whether a folder on the way from ``folder`` to the file ``name`` is a link, which may lead anywhere."""
    way = Path(name).parents
    return any(os.path.islink(folder / part) for part in way if part != Path())
