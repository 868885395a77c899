"""Small deeds on disk that must not be done halfway, and what an OSError means to the person who sees it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from llm_build.core.errors import BuildError, StepError, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


# What an OSError says of a name that stands for no file: a folder, a socket, a loop of links, a name that is too long;
# EINVAL and EFBIG are core/small_file's words for a pipe, a device and a file of any size
NO_FILE = (errno.EISDIR, errno.ENXIO, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EFBIG)


def read_whole(path: str | Path) -> bytes:
    """The bytes of a small file, with three system calls (the planner reads thousands).

    Raises:
        OSError: as open and read do; its number is one of NO_FILE for what is no file, or too large.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        data = os.read(handle, 1 << 16)
        if 0 < len(data) < 1 << 16:
            return data
        _check_small(handle, path)
        chunks = [data]
        while chunk := os.read(handle, 1 << 20):
            chunks.append(chunk)
        return b"".join(chunks)
    finally:
        os.close(handle)


def _check_small(handle: int, path: str | Path) -> None:
    from llm_build.core.small_file import MOST_BYTES, check_is_file

    status = os.fstat(handle)
    check_is_file(status, path)
    if status.st_size > MOST_BYTES:
        raise OSError(errno.EFBIG, f"it has {status.st_size} bytes; allowed: up to {MOST_BYTES}", str(path))


def status_of(path: str | Path) -> os.stat_result:
    """stat of what a name stands for; of the link itself, where it leads nowhere. OSError."""
    try:
        return os.stat(path)
    except OSError:
        return os.lstat(path)


def remove_entry(path: str | Path) -> None:
    """Remove whatever has this name: a file, a link, a folder with all that it holds. OSError."""
    if os.path.isdir(path) and not os.path.islink(path):
        import shutil

        shutil.rmtree(path)
    else:
        os.unlink(path)


def write_atomic(target: Path, data: bytes, temporary: Path, durable: bool) -> None:
    """Write ``temporary`` (same file system) and rename it to ``target``. ``durable`` survives a power cut."""
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        if durable:
            os.fsync(handle)
    except BaseException:
        os.close(handle)
        os.unlink(temporary)
        raise
    os.close(handle)
    make_folder(target.parent)
    os.replace(temporary, target)
    if durable:
        sync_folders([target.parent])


def make_folder(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync_folders([path.parent])


def sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folders(folders: Iterable[Path]) -> None:
    """Make new names in these folders survive a power cut."""
    for folder in folders:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_tree(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def explain_os_error(error: OSError, what: str, where: Path, setting: str = "store.path") -> BuildError:
    """``what`` failed at ``where``: disk full, no permission, or the system's own words."""
    if error.errno in FULL:
        return StepError(
            f"{what}: the disk is full ({_free_bytes(where) / 1e6:.0f} MB free at {where})",
            f"free some space (`build gc`), or set {setting}= to a larger disk; finished results are kept",
        )
    if error.errno in _FORBIDDEN:
        return UserError(
            f"{what}: no permission to write to {error.filename or where} ({error.strerror})",
            f"set {setting}= to a folder that you may write to",
        )
    return StepError(f"{what}: {error.strerror or error} ({error.filename or where})")


def _free_bytes(path: Path) -> int:
    """Bytes left for this user on the file system of ``path`` or of its nearest existing parent."""
    for folder in (path, *path.parents):
        if folder.exists():
            status = os.statvfs(folder)
            return status.f_bavail * status.f_frsize
    return 0
