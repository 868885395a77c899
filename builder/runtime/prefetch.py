"""Files that are mapped, brought into memory ahead of who copies them.

A copy that meets a missing page waits for it, and the disk then has one small request at a time. Here threads ask for
the pages of the next tensors with madvise(MADV_POPULATE_READ) of Linux 5.14, man page madvise(2); where there is none,
nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

_POPULATE_READ = 22  # of linux/mman.h
BLOCK_BYTES = 1 << 24  # that a thread populates at once
AHEAD = 16  # blocks that are requested before they are waited for
_THREADS = 4


def prefetched(tensors: Sequence[Any]) -> Iterator[Any]:
    """These tensors of the host (TVM's), one after the other, each when its pages are in memory."""
    blocks = ((number, *block) for number, tensor in enumerate(tensors) for block in _blocks(tensor))
    requested: deque[tuple[int, Future[None]]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:

        def request(count: int) -> None:
            for number, address, nbytes in islice(blocks, count):
                requested.append((number, pool.submit(populate, address, nbytes)))

        request(AHEAD)
        for number, tensor in enumerate(tensors):
            while requested and requested[0][0] == number:
                requested.popleft()[1].result()
                request(1)
            yield tensor


def _blocks(tensor: Any) -> Iterator[tuple[int, int]]:
    """Addresses, from the start of a page, and bytes."""
    start = tensor.data_ptr()
    end = start + tensor.numel() * tensor.dtype.itemsize
    for address in range(start - start % mmap.PAGESIZE, end, BLOCK_BYTES):
        yield address, min(BLOCK_BYTES, end - address)


def populate(address: int, nbytes: int) -> None:
    """An error says that this advice is not known, or that a page cannot be read: then the copy will meet it."""
    LIBC.madvise(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), _POPULATE_READ)


LIBC = ctypes.CDLL(None)
