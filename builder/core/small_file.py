"""Files that others wrote or may have replaced: opened only where they are files, never a pipe, which would be waited
for, or a device, which has no end; small ones are read whole, but not of any size."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

MOST_BYTES = 256 << 20  # of indexes, records and statements: as large as the JSON that is read at all
_LARGE_BYTES, _SPARSE = 16 << 30, 64  # no trained weights can be compressed that much by a file system
_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}  # fmt: skip


def read_small(path: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a file of up to ``most`` bytes.

    Raises:
        OSError: as open and read do, and for what is no file (a pipe, which would be waited for, or a device, which has
            no end) or is too large; ``strerror`` says so in words that follow "cannot be read: ".
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size} bytes; allowed: up to {most}", str(path))
        return file.read(most)


def open_file(path: str | Path) -> BufferedReader:
    """A file for reading.

    Raises:
        OSError: as open does, and for what is no file; ``strerror`` says so in words that follow "cannot be read: ".
    """
    return open(path, "rb", opener=_open)


def _open(path: str, flags: int) -> int:
    handle = os.open(path, flags | os.O_NONBLOCK)
    try:
        check_is_file(os.fstat(handle), path)
    except OSError:
        os.close(handle)
        raise
    return handle


def check_is_file(status: os.stat_result, path: str | Path) -> None:
    """Raises OSError for what is no file."""
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"it is {kind_of(status)}, not a file", str(path))


def hollow_bytes(handle: int) -> int | None:
    """How many bytes of an open file are on the disk, where that is almost nothing of a large one; else None.

    Such a file is a download that has not come far, or a trap, whose zeros would be read for hours. Systems that do not
    count blocks say 0: those are asked where the data begins (lseek(2): SEEK_DATA)."""
    status = os.fstat(handle)
    written = 512 * status.st_blocks
    if status.st_size <= _LARGE_BYTES or written >= status.st_size // _SPARSE:
        return None
    return written if written or _has_no_data(handle) else None


def _has_no_data(handle: int) -> bool:
    try:
        os.lseek(handle, 0, os.SEEK_DATA)
        return False
    except OSError as error:
        return error.errno == errno.ENXIO
    finally:
        os.lseek(handle, 0, os.SEEK_SET)


def check_not_hollow(handle: int, path: str | Path) -> None:
    """Raises OSError for a large file of which almost nothing is on the disk."""
    if (written := hollow_bytes(handle)) is not None:
        size = os.fstat(handle).st_size
        raise OSError(errno.EFBIG, f"it has {size} bytes, of which {written} are on the disk", str(path))


def kind_of(status: os.stat_result) -> str:
    """What stands where a file should: "a pipe"."""
    return _KINDS.get(stat.S_IFMT(status.st_mode), "a file")
