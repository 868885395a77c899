"""Files that are mapped, brought into memory ahead of who copies them.

A copy that meets a missing page waits for it, and the disk then has one small request at a time. Here threads ask for
the pages of the next tensors (core/system.populate); where the system has no such call, nothing happens.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from llm_build.core import system

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
                requested.append((number, pool.submit(system.populate, address, nbytes)))

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
