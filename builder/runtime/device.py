"""Where a library runs: this CPU, or this machine's GPU; and how tensors get there and back."""

from __future__ import annotations

import ctypes
import mmap
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from llm_build.core.errors import UserError
from llm_build.targets.tvm_import import import_tvm

_KIND_MARKS = {kind: f'"kind": "{kind}"'.encode() for kind in ("cuda", "metal", "opencl", "webgpu")}
_RANKS = re.compile(rb'"tensor_parallel_shards": (\d+)')
_CUDA_HOST = 3  # kDLCUDAHost of dlpack.h: the host's memory, which a GPU reads and writes by itself
_LOGITS_BUFFER_BYTES = 1 << 22  # for the logits of a token or a batch; those of a long prompt take long anyway
Array = np.ndarray[Any, Any]


def device_of(library: Path, index: int = 0) -> Device:
    """The device that a library was built for, ready to be used; of GPUs the one with the number ``index``.

    A GPU's runtime must be there before the library is opened, so its metadata are looked for in the bytes of the file.

    Raises:
        UserError: no such file; a GPU that this machine, or llm-build's runtime, does not have.
    """
    if not library.is_file():
        raise UserError(f"the library {library} does not exist", "build")
    kind = kind_of(library)
    tvm = import_tvm(runtime_only=True)
    if kind == "cpu":
        return Device(kind, tvm.runtime.cpu())
    if kind != "cuda":
        raise UserError(
            f"{library.name} was built for {kind}; llm-build runs libraries for cpu and cuda only",
            "build target=cpu",
        )
    from llm_build.targets.cuda_runtime import load_for_running

    load_for_running()
    device = tvm.runtime.device("cuda", index)
    if not device.exist and index:
        raise UserError(
            f"{library.name} was built for {ranks_of(library)} GPUs, and CUDA sees only {index} here",
            "build with target.gpus=auto, which is as many as there are",
        )
    if not device.exist:
        raise UserError(f"{library.name} was built for CUDA, and this machine has no GPU that CUDA sees", "nvidia-smi")
    return Device(kind, device)


def kind_of(library: Path) -> str:
    """cpu, or the kind of GPU in the library's metadata."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return next((kind for kind, mark in _KIND_MARKS.items() if content.find(mark) >= 0), "cpu")


def ranks_of(library: Path) -> int:
    """How many ranks a library was built for; 1 also for what is no library, which loading it will say."""
    if not library.is_file() or not library.stat().st_size:
        return 1
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        match = _RANKS.search(content)
        return 1 if match is None else int(match[1])


class TokenSlot(Protocol):
    """A tensor of one token that is used again and again."""

    def write(self, token: int) -> None: ...

    def tensor(self) -> Any:
        """On the device, once what was written is there."""


class LogitsSink(Protocol):
    """Where float32 numbers of a device come to the host, one tensor at a time."""

    def request(self, tensor: Any, shape: tuple[int, ...]) -> None:
        """Have it brought once it is computed; this does not wait for it."""

    def wait(self) -> Any:
        """An array of that shape, or what the reader of the sink needs to find it."""


@dataclass(frozen=True, slots=True)
class Device:
    """``tvm``: the device as TVM's runtime names it."""

    kind: str
    tvm: Any

    def put(self, array: Array) -> Any:
        """A tensor on the device."""
        return import_tvm(runtime_only=True).runtime.tensor(array, self.tvm)

    def put_all(self, tensors: list[Any]) -> list[Any]:
        """Tensors of the host, on the device; on the CPU they are there already."""
        if self.kind == "cpu":
            return tensors
        from llm_build.runtime.prefetch import prefetched

        return [tensor.copyto(self.tvm) for tensor in prefetched(tensors)]

    def token_slot(self) -> TokenSlot:
        return _HostTokenSlot() if self.kind == "cpu" else _DeviceTokenSlot(self)

    def logits_sink(self) -> LogitsSink:
        """One whose arrays are the caller's."""
        return _HostSink() if self.kind == "cpu" else _DeviceSink(self)

    def pin(self, array: Array) -> None:
        """Have a GPU write to this memory by itself, from now on; where that cannot be, copies to it take longer."""
        if self.kind == "cpu":
            return
        from llm_build.targets.cuda_runtime import RUNTIME, open_linked_library

        runtime = open_linked_library(RUNTIME)
        if runtime.cudaHostRegister(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes), 0):
            runtime.cudaGetLastError()  # or what is called next takes this error for its own


class _HostTokenSlot:
    def __init__(self) -> None:
        self._tensor = import_tvm(runtime_only=True).runtime.empty((1,), "int32")
        self._array: Array = np.from_dlpack(self._tensor)  # the same memory

    def write(self, token: int) -> None:
        self._array[0] = token

    def tensor(self) -> Any:
        return self._tensor


class _DeviceTokenSlot:
    """The GPU fetches the token by itself. It has done so before there are logits, and so before the next one comes."""

    def __init__(self, device: Device) -> None:
        self._tensor = import_tvm(runtime_only=True).runtime.empty((1,), "int32", device.tvm)
        self._pinned = _pinned_tensor(1, "int32")
        self._array: Array = np.from_dlpack(self._pinned)  # the same memory

    def write(self, token: int) -> None:
        self._array[0] = token

    def tensor(self) -> Any:
        return self._pinned.copyto(self._tensor)


class _HostSink:
    """Arrays are the memory of the tensors themselves."""

    def __init__(self) -> None:
        self._array: Any = None

    def request(self, tensor: Any, shape: tuple[int, ...]) -> None:
        self._array = np.from_dlpack(tensor).reshape(shape)

    def wait(self) -> Any:
        array, self._array = self._array, None
        return array


class HostBuffer:
    """Memory of the host that tensors are copied to, each over the last one; those that are too large get their own."""

    def __init__(self, device: Device, buffer: Any) -> None:
        """``buffer``: a tensor of the host, of float32 in one axis."""
        self._device, self._buffer = device, buffer
        self._floats: Array = np.from_dlpack(buffer)  # the same memory
        self._shape: tuple[int, ...] = ()  # of the tensor that was requested
        self._fits = True
        self._view, self._array = buffer, self._floats  # of that shape
        self._large: Any = None

    def request(self, tensor: Any, shape: tuple[int, ...]) -> None:
        if shape != self._shape:
            self._shape, self._fits = shape, prod(shape) <= self._floats.size
            if self._fits:  # views take longer to make than all else here
                self._view = self._buffer._create_view(shape)
                self._array = self._floats[: prod(shape)].reshape(shape)
        if self._fits:
            tensor.copyto(self._view)
        else:
            self._large = tensor

    def wait(self) -> tuple[Array, bool]:
        """The array, and whether the next one comes over it."""
        if self._fits:
            self._device.tvm.sync()
            return self._array, True
        tensor, self._large = self._large, None
        return tensor.numpy().reshape(self._shape), False


class _DeviceSink:
    def __init__(self, device: Device) -> None:
        self._buffer = HostBuffer(device, _pinned_tensor(_LOGITS_BUFFER_BYTES // 4, "float32"))
        self.request = self._buffer.request

    def wait(self) -> Any:
        array, shared = self._buffer.wait()
        return array.copy() if shared else array


def _pinned_tensor(size: int, dtype: str) -> Any:
    """A tensor of the host with one axis."""
    tvm = import_tvm(runtime_only=True)
    import tvm_ffi

    return tvm.runtime.empty((size,), dtype, tvm_ffi.device(_CUDA_HOST, 0))
