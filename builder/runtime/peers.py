"""Small sums over GPUs that can write to each other's memory, by the kernels that the library brings (``peer_sum`` in
its metadata; builder/targets/peer_sum.py says how they work). NCCL takes 10 us for them, or 17 in a CUDA graph.

Functions are those of CUDA's runtime and driver: https://docs.nvidia.com/cuda/cuda-runtime-api, cuda-driver-api.
"""

from __future__ import annotations

import base64
import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from builder.core.errors import StepError
from builder.targets.cuda_runtime import DRIVER, RUNTIME, did, linked
from builder.targets.peer_sum import (
    GATHER,
    LINE_BYTES,
    MOST,
    NAME,
    NORM,
    NORM_PAIRS,
    NORM_ROWS,
    NORM_THREADS,
    TABLE_WORDS,
    THREADS,
    WEIGHT_TYPES,
)

HANDLE_BYTES = 64  # CUDA_IPC_HANDLE_SIZE
MOST_RANKS = 8  # that the kernels have pointers for
SWITCH = "LLM_BUILD_PEERS"  # in the environment; 0: all sums through NCCL
PEER_ACCESS = 1  # cudaIpcMemLazyEnablePeerAccess
EARLY = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
Pointer = ctypes.c_void_p
Number = ctypes.c_uint
Real = ctypes.c_float
Exchange = Callable[[str, bytes], list[bytes]]  # a name and this rank's bytes -> those of all ranks


class Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTES),)


class Rooms(ctypes.Structure):
    """Where all ranks' rooms are, as this rank sees them."""

    _fields_ = (("at", Pointer * MOST_RANKS),)


class Attribute(ctypes.Structure):
    """CUlaunchAttribute, of which one number is set."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class Launch(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", Number * 3), ("block", Number * 3), ("shared_bytes", Number), ("stream", Pointer),
        ("attributes", ctypes.POINTER(Attribute)), ("attribute_count", Number),
    )  # fmt: skip


class Kernels:
    """The library's kernels on the GPU that is current."""

    def __init__(self, code: str, early: bool) -> None:
        """``code``: machine code in base64; ``early``: its kernels wait by themselves for the ones before them.
        StepError when the driver does not take it."""
        self._early = (Attribute * 1)(Attribute(EARLY, 0, 1)) if early else (Attribute * 0)()
        self._driver, self._module = linked(DRIVER), Pointer()
        did("cuModuleLoadData", self._driver.cuModuleLoadData(ctypes.byref(self._module), base64.b64decode(code)))
        self._functions = {name: self._function(name) for name in (NAME, GATHER, NORM)}

    def launch(self, name: str, blocks: int, threads: int, values: Sequence[Any], stream: int) -> None:
        addresses = (Pointer * len(values))(*(ctypes.addressof(value) for value in values))
        launch = Launch((blocks, 1, 1), (threads, 1, 1), 0, stream, self._early, len(self._early))
        code = self._driver.cuLaunchKernelEx(ctypes.byref(launch), self._functions[name], addresses, None)
        did("cuLaunchKernelEx", code)

    def norm(
        self, part: Any, weight: Any, eps: float, total: Any, normed: Any, stream: int, peers: Sequence[Any]
    ) -> None:
        """The sum over ``peers`` (none: what ``part`` has) and its RMS norm; tensors of TVM, rows of at most 2 *
        NORM_PAIRS numbers."""
        rows, width = part.shape
        alone = (Rooms(), Pointer(), Pointer(), Number(0), Number(1))
        values = (
            Pointer(part.data_ptr()), Pointer(weight.data_ptr()), Number(WEIGHT_TYPES.index(str(weight.dtype))),
            Real(eps), Pointer(total.data_ptr()), Pointer(normed.data_ptr()), Number(width // 2), *(peers or alone),
        )  # fmt: skip
        self.launch(NORM, rows, NORM_THREADS, values, stream)

    def _function(self, name: str) -> Pointer:
        found = Pointer()
        code = self._driver.cuModuleGetFunction(ctypes.byref(found), self._module, name.encode())
        did("cuModuleGetFunction", code)
        return found


class Peers:
    """One rank's rooms and the others' as it sees them. For tensors of float32 on the GPU that is current."""

    def __init__(self, kernels: Kernels, rank: int, ranks: int, exchange: Exchange) -> None:
        """Raises StepError when a rank cannot reach another one's memory, or where SWITCH is 0; then all ranks
        raise it."""
        if os.environ.get(SWITCH) == "0":
            raise StepError(f"{SWITCH}=0")
        if ranks > MOST_RANKS:
            raise StepError(f"{ranks} GPUs; the kernel is made for {MOST_RANKS}")
        self._kernels, self._runtime, self._rank, self._ranks = kernels, linked(RUNTIME), rank, ranks
        pairs = MOST // 2
        sums = self._rooms("room", 2 * ranks * pairs, exchange)
        norms = self._rooms("rows", 2 * ranks * NORM_ROWS * NORM_PAIRS, exchange)
        sent, _own = self._rooms("sent", 2 * ranks * NORM_PAIRS, exchange)
        addresses = [self._zeroed(8).value or 0, *(sent.at[each] or 0 for each in range(MOST_RANKS))]
        words = [word for address in addresses for word in (address & 0xFFFFFFFF, address >> 32)]
        self.table = np.array([rank, ranks, *words], np.uint32)  # what the library's products are told
        assert self.table.size == TABLE_WORDS
        mine = (Number(rank), Number(ranks))
        self._sums = (*sums, self._zeroed(pairs // THREADS * 4), Number(pairs), *mine)
        self.norms = (*norms, self._zeroed(NORM_ROWS * 4), *mine)  # what Kernels.norm takes

    def sum(self, part: int, total: int, count: int, stream: int) -> None:
        """Launch the sum of ``count`` numbers (even, at most MOST) at the addresses ``part`` of all ranks."""
        self._launch(NAME, part, total, count, stream)

    def gather(self, part: int, whole: int, count: int, stream: int) -> None:
        """Likewise, the ``count`` numbers of each rank, one rank's after the other's."""
        self._launch(GATHER, part, whole, count, stream)

    def _launch(self, name: str, part: int, result: int, count: int, stream: int) -> None:
        values = (Pointer(part), Pointer(result), Number(count // 2), *self._sums)
        self._kernels.launch(name, -(-count // (2 * THREADS)), THREADS, values, stream)

    def _rooms(self, name: str, lines: int, exchange: Exchange) -> tuple[Rooms, Pointer]:
        """All ranks' rooms of that many lines, and this rank's own."""
        own, handle = self._room(lines * LINE_BYTES)
        rooms, problem = [own] * self._ranks, ""
        try:
            for number, given in enumerate(exchange(name, handle)):
                rooms[number] = own if number == self._rank else self._opened(given)
        except StepError as error:
            problem = error.message
        for said in exchange(f"{name}-reached", problem.encode()):
            if said:
                raise StepError(said.decode())
        return Rooms((Pointer * MOST_RANKS)(*(room.value for room in rooms))), own

    def _room(self, nbytes: int) -> tuple[Pointer, bytes]:
        """Memory that others may open, and its handle; an empty one where that cannot be."""
        handle = Handle()
        try:
            own = self._zeroed(nbytes)
            did("cudaIpcGetMemHandle", self._runtime.cudaIpcGetMemHandle(ctypes.byref(handle), own))
        except StepError:
            return Pointer(), b""
        return own, bytes(handle)

    def _zeroed(self, nbytes: int) -> Pointer:
        room, size = Pointer(), ctypes.c_size_t(nbytes)
        did("cudaMalloc", self._runtime.cudaMalloc(ctypes.byref(room), size))
        did("cudaMemset", self._runtime.cudaMemset(room, 0, size))
        did("cudaDeviceSynchronize", self._runtime.cudaDeviceSynchronize())
        return room

    def _opened(self, handle: bytes) -> Pointer:
        if len(handle) != HANDLE_BYTES:
            raise StepError("another rank has no room")
        room, given = Pointer(), Handle.from_buffer_copy(handle)
        did("cudaIpcOpenMemHandle", self._runtime.cudaIpcOpenMemHandle(ctypes.byref(room), given, PEER_ACCESS))
        return room
