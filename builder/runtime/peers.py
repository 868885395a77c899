"""Small sums over GPUs that can write to each other's memory, by the kernels that the library brings (``peer_sum`` in
its metadata; builder/targets/peer_allreduce.py says how they work). NCCL takes 10 us for them, or 17 in a CUDA graph.

Functions are those of CUDA's runtime and driver: https://docs.nvidia.com/cuda/cuda-runtime-api, cuda-driver-api.
"""

from __future__ import annotations

import base64
import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llm_build.core.errors import StepError
from llm_build.targets.cuda_runtime import DRIVER, RUNTIME, check_cuda, open_linked_library
from llm_build.targets.peer_allreduce import (
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

_HANDLE_BYTES = 64  # CUDA_IPC_HANDLE_SIZE
_MAX_RANKS = 8  # that the kernels have pointers for
SWITCH = "LLM_BUILD_PEERS"  # in the environment; 0: all sums through NCCL
_PEER_ACCESS = 1  # cudaIpcMemLazyEnablePeerAccess
_PROGRAMMATIC_LAUNCH = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
Pointer = ctypes.c_void_p
Number = ctypes.c_uint
Real = ctypes.c_float
Exchange = Callable[[str, bytes], list[bytes]]  # a name and this rank's bytes -> those of all ranks


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * _HANDLE_BYTES),)


class _Buffers(ctypes.Structure):
    """Where all ranks' buffers are, as this rank sees them."""

    _fields_ = (("at", Pointer * _MAX_RANKS),)


class _LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute, of which one number is set."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", Number * 3), ("block", Number * 3), ("shared_bytes", Number), ("stream", Pointer),
        ("attributes", ctypes.POINTER(_LaunchAttribute)), ("attribute_count", Number),
    )  # fmt: skip


class PeerKernels:
    """The library's kernels on the GPU that is current."""

    def __init__(self, code: str, pdl: bool) -> None:
        """``code``: machine code in base64; ``pdl``: its kernels wait by themselves for the ones before them.
        StepError when the driver does not take it."""
        attributes = [_LaunchAttribute(_PROGRAMMATIC_LAUNCH, 0, 1)] if pdl else []
        self._attributes = (_LaunchAttribute * len(attributes))(*attributes)
        self._driver, self._module = open_linked_library(DRIVER), Pointer()
        check_cuda(
            "cuModuleLoadData", self._driver.cuModuleLoadData(ctypes.byref(self._module), base64.b64decode(code))
        )
        self._functions = {name: self._function(name) for name in (NAME, GATHER, NORM)}

    def launch(self, name: str, blocks: int, threads: int, values: Sequence[Any], stream: int) -> None:
        addresses = (Pointer * len(values))(*(ctypes.addressof(value) for value in values))
        launch = _LaunchConfig((blocks, 1, 1), (threads, 1, 1), 0, stream, self._attributes, len(self._attributes))
        code = self._driver.cuLaunchKernelEx(ctypes.byref(launch), self._functions[name], addresses, None)
        check_cuda("cuLaunchKernelEx", code)

    def norm(
        self, part: Any, weight: Any, eps: float, total: Any, normed: Any, stream: int, peers: Sequence[Any]
    ) -> None:
        """The sum over ``peers`` (none: what ``part`` has) and its RMS norm; tensors of TVM, rows of at most 2 *
        NORM_PAIRS numbers."""
        rows, width = part.shape
        alone = (_Buffers(), Pointer(), Pointer(), Number(0), Number(1))
        values = (
            Pointer(part.data_ptr()), Pointer(weight.data_ptr()), Number(WEIGHT_TYPES.index(str(weight.dtype))),
            Real(eps), Pointer(total.data_ptr()), Pointer(normed.data_ptr()), Number(width // 2), *(peers or alone),
        )  # fmt: skip
        self.launch(NORM, rows, NORM_THREADS, values, stream)

    def _function(self, name: str) -> Pointer:
        function = Pointer()
        code = self._driver.cuModuleGetFunction(ctypes.byref(function), self._module, name.encode())
        check_cuda("cuModuleGetFunction", code)
        return function


class Peers:
    """One rank's buffers and the others' as it sees them. For tensors of float32 on the GPU that is current."""

    def __init__(self, kernels: PeerKernels, rank: int, ranks: int, exchange: Exchange) -> None:
        """Raises StepError when a rank cannot reach another one's memory, or where SWITCH is 0; then all ranks
        raise it."""
        if os.environ.get(SWITCH) == "0":
            raise StepError(f"{SWITCH}=0")
        if ranks > _MAX_RANKS:
            raise StepError(f"{ranks} GPUs; the kernel is made for {_MAX_RANKS}")
        self._kernels, self._runtime, self._rank, self._ranks = kernels, open_linked_library(RUNTIME), rank, ranks
        pairs = MOST // 2
        sums = self._exchange_buffers("room", 2 * ranks * pairs, exchange)
        norms = self._exchange_buffers("rows", 2 * ranks * NORM_ROWS * NORM_PAIRS, exchange)
        sent, _own = self._exchange_buffers("sent", 2 * ranks * NORM_PAIRS, exchange)
        addresses = [self._allocate_zeros(8).value or 0, *(sent.at[each] or 0 for each in range(_MAX_RANKS))]
        words = [word for address in addresses for word in (address & 0xFFFFFFFF, address >> 32)]
        self.table = np.array([rank, ranks, *words], np.uint32)  # what the library's matrix products read
        assert self.table.size == TABLE_WORDS
        mine = (Number(rank), Number(ranks))
        self._sums = (*sums, self._allocate_zeros(pairs // THREADS * 4), Number(pairs), *mine)
        self.norms = (*norms, self._allocate_zeros(NORM_ROWS * 4), *mine)  # what PeerKernels.norm takes

    def sum(self, part: int, total: int, count: int, stream: int) -> None:
        """Launch the sum of ``count`` numbers (even, at most MOST) at the addresses ``part`` of all ranks."""
        self._launch(NAME, part, total, count, stream)

    def gather(self, part: int, whole: int, count: int, stream: int) -> None:
        """Likewise, the ``count`` numbers of each rank, one rank's after the other's."""
        self._launch(GATHER, part, whole, count, stream)

    def _launch(self, name: str, part: int, result: int, count: int, stream: int) -> None:
        values = (Pointer(part), Pointer(result), Number(count // 2), *self._sums)
        self._kernels.launch(name, -(-count // (2 * THREADS)), THREADS, values, stream)

    def _exchange_buffers(self, name: str, lines: int, exchange: Exchange) -> tuple[_Buffers, Pointer]:
        """All ranks' buffers of that many lines, and this rank's own."""
        own, handle = self._shared_buffer(lines * LINE_BYTES)
        buffers, problem = [own] * self._ranks, ""
        try:
            for number, other in enumerate(exchange(name, handle)):
                buffers[number] = own if number == self._rank else self._open(other)
        except StepError as error:
            problem = error.message
        for message in exchange(f"{name}-reached", problem.encode()):
            if message:
                raise StepError(message.decode())
        return _Buffers((Pointer * _MAX_RANKS)(*(buffer.value for buffer in buffers))), own

    def _shared_buffer(self, nbytes: int) -> tuple[Pointer, bytes]:
        """Memory that others may open, and its handle; an empty one where that cannot be."""
        handle = _Handle()
        try:
            own = self._allocate_zeros(nbytes)
            check_cuda("cudaIpcGetMemHandle", self._runtime.cudaIpcGetMemHandle(ctypes.byref(handle), own))
        except StepError:
            return Pointer(), b""
        return own, bytes(handle)

    def _allocate_zeros(self, nbytes: int) -> Pointer:
        buffer, size = Pointer(), ctypes.c_size_t(nbytes)
        check_cuda("cudaMalloc", self._runtime.cudaMalloc(ctypes.byref(buffer), size))
        check_cuda("cudaMemset", self._runtime.cudaMemset(buffer, 0, size))
        check_cuda("cudaDeviceSynchronize", self._runtime.cudaDeviceSynchronize())
        return buffer

    def _open(self, handle: bytes) -> Pointer:
        if len(handle) != _HANDLE_BYTES:
            raise StepError("another rank has no memory that others may open")
        buffer, other = Pointer(), _Handle.from_buffer_copy(handle)
        check_cuda(
            "cudaIpcOpenMemHandle", self._runtime.cudaIpcOpenMemHandle(ctypes.byref(buffer), other, _PEER_ACCESS)
        )
        return buffer
