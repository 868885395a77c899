"""Locks between builds on one store: a file each, held with flock, so that a killed build lets go by itself."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import NamedTuple

from llm_build.core import disk, system

_ODD = (errno.EISDIR, errno.ENXIO, errno.ELOOP)  # of opening a folder, a socket or a pipe without a reader, a link


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
        handle = _open(path)
        if not system.lock(handle, alone=True, wait=False):
            os.close(handle)
            return None
        if _is_on_disk(handle, path):
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            return FileLock(path, handle)
        os.close(handle)


def _open(path: Path) -> int:
    """A lock file, made if there is none. What stands there and is no file is replaced, for nothing but locks belongs
    there; a link is not followed, for what it leads to would be cut. OSError."""
    for attempt in range(2):
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if attempt or error.errno not in _ODD:
                raise
        else:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                return handle
            os.close(handle)
        disk.remove_entry(path)
    raise OSError(errno.EINVAL, "it is no file, and comes back", str(path))


def holder(path: Path) -> int:
    """Process id written by whoever holds the lock, 0 when unknown."""
    try:
        return int(disk.read_whole(path) or b"0")
    except (OSError, ValueError):
        return 0


def is_held(path: Path) -> bool:
    """Whether some process holds the lock; the file is only read."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not system.lock(handle, alone=False, wait=False)
    finally:
        os.close(handle)


def lock_shared(path: Path, wait: bool) -> int | None:
    """A handle that keeps a shared lock until it is closed; None when it is taken exclusively and ``wait`` is off."""
    return _lock_plain(path, alone=False, wait=wait)


def lock_alone(path: Path) -> int | None:
    """A handle that keeps the exclusive lock; None when anyone holds it."""
    return _lock_plain(path, alone=True, wait=False)


def _lock_plain(path: Path, alone: bool, wait: bool) -> int | None:
    handle = _open(path)
    if not system.lock(handle, alone, wait):
        os.close(handle)
        return None
    return handle


def _is_on_disk(handle: int, path: Path) -> bool:
    try:
        return os.fstat(handle).st_ino == os.stat(path).st_ino
    except FileNotFoundError:
        return False
