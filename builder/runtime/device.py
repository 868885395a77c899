"""Where a library runs: this CPU, or this machine's GPU; and how tensors get there and back."""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from builder.core.errors import UserError
from builder.targets.tvm_import import import_tvm

MARKS = {kind: f'"kind": "{kind}"'.encode() for kind in ("cuda", "metal", "opencl", "webgpu")}
RANKS = re.compile(rb'"tensor_parallel_shards": (\d+)')
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
    from builder.targets.cuda_runtime import load_for_running

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
        return next((kind for kind, mark in MARKS.items() if content.find(mark) >= 0), "cpu")


def ranks_of(library: Path) -> int:
    """How many ranks a library was built for; 1 also for what is no library, which loading it will say."""
    if not library.is_file() or not library.stat().st_size:
        return 1
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = RANKS.search(content)
        return 1 if found is None else int(found[1])


class Slot(Protocol):
    """A tensor of one token that is used again and again."""

    def holding(self, token: int) -> Any: ...


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
        return [tensor.copyto(self.tvm) for tensor in tensors]

    def take(self, tensor: Any) -> Any:
        """A tensor as an array of the host. On the CPU it is the same memory."""
        return np.from_dlpack(tensor) if self.kind == "cpu" else tensor.numpy()

    def slot(self) -> Slot:
        return HostSlot() if self.kind == "cpu" else DeviceSlot(self)


class HostSlot:
    def __init__(self) -> None:
        self._tensor = import_tvm(runtime_only=True).runtime.empty((1,), "int32")
        self._array: Array = np.from_dlpack(self._tensor)  # the same memory

    def holding(self, token: int) -> Any:
        self._array[0] = token
        return self._tensor


class DeviceSlot:
    def __init__(self, device: Device) -> None:
        self._tensor = import_tvm(runtime_only=True).runtime.empty((1,), "int32", device.tvm)
        self._array = np.zeros(1, np.int32)

    def holding(self, token: int) -> Any:
        self._array[0] = token
        self._tensor.copyfrom(self._array)
        return self._tensor
