"""Locks between builds on one store: a file each, held with flock, so that a killed build lets go by itself."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import NamedTuple


class FileLock(NamedTuple):
    path: Path
    handle: int

    def release(self) -> None:
        """Remove the file, then let go: whoever waits on the old file sees that it is no longer the one on disk."""
        self.path.unlink(missing_ok=True)
        os.close(self.handle)


def try_lock(path: Path) -> FileLock | None:
    """The lock, or None while another build holds it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        if _is_on_disk(handle, path):
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            return FileLock(path, handle)
        os.close(handle)


def holder(path: Path) -> int:
    """Process id written by whoever holds the lock, 0 when unknown."""
    try:
        return int(path.read_bytes() or b"0")
    except (OSError, ValueError):
        return 0


def is_held(path: Path) -> bool:
    """Whether some process holds the lock; the file is only read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def lock_shared(path: Path, wait: bool) -> int | None:
    """A handle that keeps a shared lock until it is closed; None when it is taken exclusively and ``wait`` is off."""
    return _lock_plain(path, fcntl.LOCK_SH, wait)


def lock_alone(path: Path) -> int | None:
    """A handle that keeps the exclusive lock; None when anyone holds it."""
    return _lock_plain(path, fcntl.LOCK_EX, wait=False)


def _lock_plain(path: Path, kind: int, wait: bool) -> int | None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _is_on_disk(handle: int, path: Path) -> bool:
    try:
        return os.fstat(handle).st_ino == os.stat(path).st_ino
    except FileNotFoundError:
        return False
