"""NCCL, called directly: TVM's own stream and memory, no copy, no other framework.

Functions and numbers are those of nccl.h (https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api.html). Where
TVM captures a CUDA graph these calls are captured with the kernels around them, and Python is not asked again.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_build.core.errors import StepError, UserError
from llm_build.runtime.peers import PeerKernels, Peers
from llm_build.targets.cuda import supports_pdl
from llm_build.targets.cuda_runtime import RUNTIME, open_linked_library
from llm_build.targets.nvidia_gpus import find_nccl
from llm_build.targets.peer_allreduce import MOST, NAME, NORM_ROWS, SET_PEERS
from llm_build.targets.tvm_import import import_tvm

MEET_S = 100.0
_ID_BYTES = 128  # NCCL_UNIQUE_ID_BYTES
_TYPES = {"int8": 0, "uint8": 1, "int32": 2, "uint32": 3, "int64": 4, "uint64": 5, "float16": 6, "float32": 7}
_REDUCTIONS = {"sum": 0, "max": 2}


class _UniqueId(ctypes.Structure):
    _fields_ = (("internal", ctypes.c_char * _ID_BYTES),)


class Nccl:
    """One rank's end of a communicator of all ranks, each with the GPU of its number."""

    def __init__(self, rank: int, ranks: int, folder: Path) -> None:
        import_tvm(runtime_only=True)
        from tvm_ffi import get_raw_stream

        self._nccl, self._communicator, self._stream = _library(), ctypes.c_void_p(), get_raw_stream
        self._rank, self._ranks, self._folder = rank, ranks, folder
        self._kernels: PeerKernels | None = None
        self._peers: Peers | None = None
        _set_device(rank)
        identity = _UniqueId()
        if rank == 0:
            self._check("ncclGetUniqueId", self._nccl.ncclGetUniqueId(ctypes.byref(identity)))
            _publish(folder / "nccl", bytes(identity))
        else:
            identity = _UniqueId.from_buffer_copy(_read_published(folder / "nccl", 0))
        code = self._nccl.ncclCommInitRank(ctypes.byref(self._communicator), ranks, identity, rank)
        self._check("ncclCommInitRank", code)

    def enable_peer_sums(self, metadata: Mapping[str, Any], function: Callable[[str], Any]) -> bool:
        if NAME not in metadata:
            return True
        if self._kernels is None:
            self._kernels = PeerKernels(metadata[NAME], supports_pdl(metadata["target"]["arch"]))
            try:
                self._peers = Peers(self._kernels, self._rank, self._ranks, self._exchange)
            except StepError as error:
                print(f"small sums go through NCCL too: {error.message}", file=sys.stderr)
        if self._peers:
            tvm = import_tvm(runtime_only=True)
            function(SET_PEERS)(tvm.runtime.tensor(self._peers.table, tvm.runtime.device("cuda", self._rank)))
        return self._peers is not None

    def _exchange(self, name: str, own: bytes) -> list[bytes]:
        _publish(self._folder / f"{name}-{self._rank}", own)
        return [_read_published(self._folder / f"{name}-{rank}", rank) for rank in range(self._ranks)]

    def all_reduce(self, send: Any, recv: Any, kind: str) -> None:
        count = send.numel()
        if self._peers and kind == "sum" and _is_small(send):
            self._peers.sum(send.data_ptr(), recv.data_ptr(), count, self._stream(send.device))
            return
        code = self._nccl.ncclAllReduce(
            send.data_ptr(), recv.data_ptr(), count, _TYPES[str(send.dtype)], _REDUCTIONS[kind],
            self._communicator, self._stream(send.device),
        )  # fmt: skip
        self._check("ncclAllReduce", code)

    def sum_norm(self, part: Any, weight: Any, eps: float, total: Any, normed: Any) -> None:
        """The sum of all ranks' parts (rows, width), and its RMS norm; what a library calls by the name SUM_NORM."""
        assert self._kernels is not None, "the library that calls this brings them"
        peers = self._peers.norms if self._peers and part.shape[0] <= NORM_ROWS else ()
        if not peers:
            self.all_reduce(part, total, "sum")
        self._kernels.norm(part if peers else total, weight, eps, total, normed, self._stream(part.device), peers)

    def all_gather(self, send: Any, recv: Any) -> None:
        if self._peers and _is_small(send):
            self._peers.gather(send.data_ptr(), recv.data_ptr(), send.numel(), self._stream(send.device))
            return
        code = self._nccl.ncclAllGather(
            send.data_ptr(), recv.data_ptr(), send.numel(), _TYPES[str(send.dtype)], self._communicator,
            self._stream(send.device),
        )  # fmt: skip
        self._check("ncclAllGather", code)

    def _check(self, name: str, code: int) -> None:
        if code:
            reason = self._nccl.ncclGetErrorString(code).decode()
            last = (self._nccl.ncclGetLastError(None) or b"").decode()
            raise StepError(f"{name}: {reason}. {last}".strip(), "NCCL_DEBUG=WARN shows more")


def _is_small(send: Any) -> bool:
    """Whether the kernels for small tensors take it."""
    count = send.numel()
    return str(send.dtype) == "float32" and count % 2 == 0 and count <= MOST


def _library() -> ctypes.CDLL:
    libraries = find_nccl()
    if libraries is None:
        raise UserError(
            "no libnccl.so.2 on this machine: GPUs cannot talk to each other", "pip install nvidia-nccl-cu13"
        )
    nccl = ctypes.CDLL(str(libraries[0]))
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    nccl.ncclGetErrorString.restype = ctypes.c_char_p
    nccl.ncclGetLastError.restype, nccl.ncclGetLastError.argtypes = ctypes.c_char_p, [pointer]
    nccl.ncclCommInitRank.argtypes = [pointer, number, _UniqueId, number]
    nccl.ncclAllReduce.argtypes = [pointer, pointer, size, number, number, pointer, pointer]
    nccl.ncclAllGather.argtypes = [pointer, pointer, size, number, pointer, pointer]
    return nccl


def _set_device(number: int) -> None:
    """For the calling thread: NCCL takes the device that is current."""
    if code := open_linked_library(RUNTIME).cudaSetDevice(number):
        raise StepError(f"cudaSetDevice({number}): error {code}", "nvidia-smi")


def _publish(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(content)
    os.replace(part, path)


def _read_published(path: Path, rank: int) -> bytes:
    """What a rank published; StepError when it does not come."""
    until = time.monotonic() + MEET_S
    while not path.exists():
        if time.monotonic() > until:
            raise StepError(f"rank {rank} wrote no {path.name} in {MEET_S:.0f} s")
        time.sleep(0.005)
    return path.read_bytes()
