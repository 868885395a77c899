"""Mapped files are in memory when they are copied, and no more of them than that."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_build.core import system
from llm_build.runtime import prefetch
from llm_build.targets.tvm_import import import_tvm

MIB = 1 << 20
SIZES = (40 * MIB, 300, 3 * MIB + 4, 0, 17 * MIB)


def mapped(path: Path) -> list[Any]:
    """Tensors over a file that is on the disk only, 64 bytes apart."""
    path.write_bytes(os.urandom(64 * MIB))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        whole = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    tvm, found, offset = import_tvm(runtime_only=True), [], 64
    for size in SIZES:
        found.append(tvm.runtime.from_dlpack(whole[offset : offset + size]))
        offset += size // 64 * 64 + 128
    return found


def missing(tensor: Any) -> int:
    """Pages that are not in memory."""
    start = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    nbytes = tensor.data_ptr() + tensor.numel() - start
    room = (ctypes.c_ubyte * -(-nbytes // mmap.PAGESIZE))()
    assert not system._libc().mincore(ctypes.c_void_p(start), ctypes.c_size_t(nbytes), room)
    return sum(not each & 1 for each in room)


@pytest.mark.skipif(sys.platform != "linux", reason="madvise and mincore of Linux")
def test_pages_are_there_when_a_tensor_is(tmp_path: Path):
    tensors = mapped(tmp_path / "weights")
    if missing(tensors[0]) < 100:
        pytest.skip("this file system keeps what it is told to forget")
    found = []
    for tensor in prefetch.prefetched(tensors):
        assert missing(tensor) == 0
        found.append(tensor)
    assert all(one is other for one, other in zip(found, tensors, strict=True))


def test_not_all_is_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where memory is less than the file, what is read too early would be gone again."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(system, "populate", lambda address, nbytes: asked.append((address, nbytes)))
    monkeypatch.setattr(prefetch, "AHEAD", 2)
    tensors = mapped(tmp_path / "weights")
    several = prefetch.prefetched(tensors)
    assert next(several) is tensors[0]
    assert len(asked) <= 3 + 2
    assert list(several) == tensors[1:]
    for tensor, size in zip(tensors, SIZES, strict=True):
        covered = sum(
            max(0, min(address + nbytes, tensor.data_ptr() + size) - max(address, tensor.data_ptr()))
            for address, nbytes in asked
        )
        assert covered >= size
    assert max(nbytes for _, nbytes in asked) == prefetch.BLOCK_BYTES


def test_an_address_that_cannot_be_read_is_the_copy_s_to_say():
    system.populate(mmap.PAGESIZE, mmap.PAGESIZE)
