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

POPULATE_READ = 22  # of linux/mman.h
PIECE_BYTES = 1 << 24  # that a thread asks for at once
AHEAD = 16  # pieces that are asked for before they are waited for
THREADS = 4


def there(tensors: Sequence[Any]) -> Iterator[Any]:
    """These tensors of the host (TVM's), one after the other, each when its pages are in memory."""
    pieces = ((number, *piece) for number, tensor in enumerate(tensors) for piece in pieces_of(tensor))
    asked: deque[tuple[int, Future[None]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:

        def ask(count: int) -> None:
            for number, address, nbytes in islice(pieces, count):
                asked.append((number, pool.submit(populate, address, nbytes)))

        ask(AHEAD)
        for number, tensor in enumerate(tensors):
            while asked and asked[0][0] == number:
                asked.popleft()[1].result()
                ask(1)
            yield tensor


def pieces_of(tensor: Any) -> Iterator[tuple[int, int]]:
    """Addresses, from the start of a page, and bytes."""
    start = tensor.data_ptr()
    end = start + tensor.numel() * tensor.dtype.itemsize
    for address in range(start - start % mmap.PAGESIZE, end, PIECE_BYTES):
        yield address, min(PIECE_BYTES, end - address)


def populate(address: int, nbytes: int) -> None:
    """An error says that this advice is not known, or that a page cannot be read: then the copy will meet it."""
    LIBC.madvise(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), POPULATE_READ)


LIBC = ctypes.CDLL(None)
