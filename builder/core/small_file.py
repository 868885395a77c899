"""Small files that others wrote: read whole, but never a pipe, a device or a file of any size."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}  # fmt: skip


def read_small(path: Path, most: int) -> bytes:
    """The bytes of a file of up to ``most`` bytes.

    Raises:
        OSError: as open and read do, and for what is no file (a pipe, which would be waited for, or a device, which has
            no end) or is too large; ``strerror`` says so in words that follow "cannot be read: ".
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, f"it is {kind_of(status)}, not a file", str(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"it has {status.st_size} bytes; allowed: up to {most}", str(path))
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(handle)


def kind_of(status: os.stat_result) -> str:
    """What stands where a file should: "a pipe"."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "a file")
