"""What one operating system has and another lacks: the one place that asks which it is. Stdlib only.

llm-build runs on Linux (x86-64, arm64) and is written for macOS on Apple silicon. Windows has neither flock nor
sessions; there it runs inside WSL 2, which is a Linux.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

LINUX, MACOS = "linux", "darwin"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_FICLONE = 0x40049409  # linux/fs.h
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
_MADV_POPULATE_READ = 22  # linux/mman.h, Linux 5.14
_STATUS, _SMAPS = "/proc/self/status", "/proc/self/smaps_rollup"
_CGROUP = "/sys/fs/cgroup/memory.max"


def name() -> str:
    """ "Linux", "macOS"."""
    return {LINUX: "Linux", MACOS: "macOS"}.get(sys.platform, sys.platform)


def is_macos() -> bool:
    return sys.platform == MACOS


def user_data_folder() -> Path:
    """Where programs keep what a user would miss (XDG Base Directory Specification; macOS: Application Support)."""
    if is_macos():
        return Path.home() / "Library" / "Application Support"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")


def host_triple() -> str:
    """LLVM's triple of a CPU's library for this machine."""
    return f"{os.uname().machine}-{'apple-macos' if sys.platform == MACOS else 'linux-gnu'}"


# ---------------------------------------------------------------- processors and memory


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Of the machine, or what the cgroup of a container allows where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path(_CGROUP).read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def reset_peak() -> None:
    """Let peak_bytes start again (proc(5): clear_refs 5); elsewhere it is that of the whole process."""
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_bytes() -> int:
    """Largest resident size, shared pages included."""
    if (counted := _proc_bytes(_STATUS, "VmHWM:")) is not None:
        return counted
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == MACOS else largest * 1024  # getrusage(2): bytes there, kilobytes elsewhere


def proportional_bytes() -> int | None:
    """Resident size now, shared pages counted in part (proc(5): Pss); None where the system does not say."""
    return _proc_bytes(_SMAPS, "Pss:")


def _proc_bytes(file: str, key: str) -> int | None:
    try:
        with open(file) as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)
    except OSError:
        return None


# ---------------------------------------------------------------- files


def lock(handle: int, alone: bool, wait: bool) -> bool:
    """flock(2) on an open file, alone or shared with other readers; False: somebody holds it, and ``wait`` is off."""
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    try:
        fcntl.flock(handle, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def clone(source: int, target: int) -> bool:
    """Give the open empty file ``target`` the blocks of ``source`` (ioctl_ficlone(2)); False where the file system or
    the operating system does not share blocks."""
    if sys.platform != LINUX:
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def memory_file(label: str) -> IO[bytes]:
    """A file without a name that child processes can inherit: in memory (memfd_create(2)), else in the folder for
    temporary files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create(label), "r+b")
    import tempfile

    return tempfile.TemporaryFile()


def start_writeback(handle: int) -> None:
    """Let the disk begin with what was written so far (sync_file_range(2)); only a hint."""
    if hasattr(_libc(), "sync_file_range"):
        from ctypes import c_int64

        zero = c_int64(0)
        _libc().sync_file_range(handle, zero, zero, _SYNC_FILE_RANGE_WRITE)


def populate(address: int, nbytes: int) -> None:
    """Bring mapped pages into memory (madvise(2): MADV_POPULATE_READ); nothing where the system does not know it, or
    a page cannot be read: whoever copies it will meet that."""
    if sys.platform == LINUX:
        from ctypes import c_size_t, c_void_p

        _libc().madvise(c_void_p(address), c_size_t(nbytes), _MADV_POPULATE_READ)


# ---------------------------------------------------------------- processes


def die_with_parent() -> None:
    """This process is killed when its parent ends (prctl(2)); elsewhere the pipe that closes is the only sign."""
    if sys.platform == LINUX:
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def flush_c_output() -> None:
    """What C code printed and has not written yet."""
    _libc().fflush(None)


@cache
def _libc() -> Any:
    import ctypes  # on the way to a build with nothing to do it would be 3 ms

    return ctypes.CDLL(None)
