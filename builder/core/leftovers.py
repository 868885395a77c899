"""What builds that were killed leave in a store: scratch folders and lock files. Their locks are free by themselves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from llm_build.core import disk, lock

_HALF_MADE_S = 60.0  # a hidden entry of tmp/ is being made right now, unless it is older than this


def leftovers(root: Path) -> list[str]:
    """Names below ``root`` of what no living build owns; changes nothing."""
    return [path.relative_to(root).as_posix() for path in (*_scratches(root), *_locks(root))]


def clear(root: Path) -> None:
    """Remove them, but for those of another user and those that another build is clearing at the same moment."""
    for path in _scratches(root):
        with suppress(OSError):
            _remove(path)
    for path in _locks(root):
        with suppress(OSError):
            if dead := lock.try_lock(path):
                dead.release()


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    elif (handle := lock.lock_alone(path / "alive")) is not None:
        disk.remove_tree(path)
        os.close(handle)


def _scratches(root: Path) -> Iterator[Path]:
    for path in sorted((root / "tmp").iterdir()):
        try:
            if path.name.startswith(".") and time.time() - path.stat().st_mtime < _HALF_MADE_S:
                continue
        except OSError:
            continue
        if not (path.is_dir() and lock.is_held(path / "alive")):
            yield path


def _locks(root: Path) -> Iterator[Path]:
    return (path for path in sorted((root / "locks").iterdir()) if path.name != "builds" and not lock.is_held(path))
