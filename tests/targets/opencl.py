"""Run a library for OpenCL on this CPU, through PoCL:
`python -m tests.targets.opencl OBJECTS.tar ARTIFACT PREFIX PROMPT TOKENS`.

apache-tvm's wheel has no OpenCL runtime, so a small one stands here: memory of the device is the host's, and each
kernel's function compiles nothing and launches what PoCL compiled. Everything else is what an app does: the objects
are linked, they register themselves, and the runtime finds them by their prefix.

Checks the sampling functions; prints JSON: greedy tokens, logits after the prompt and after each token of it once more,
and per kernel its largest launch.
"""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyopencl

from llm_build.runtime import engine
from llm_build.runtime import loaded_model as calls
from llm_build.runtime.device import Device
from llm_build.steps.link import unpacked
from llm_build.targets.tvm_import import import_tvm
from tests.targets.objects import opencl_of
from tools.gpu import sampling

SCALARS = {"int": np.int32, "uint": np.uint32, "float": np.float32}


class Kernels:
    """The kernels of a source, compiled; each launch is counted."""

    def __init__(self, source: str) -> None:
        (platform,) = (p for p in pyopencl.get_platforms() if p.name == "Portable Computing Language")
        self.context = pyopencl.Context(platform.get_devices())
        self.queue = pyopencl.CommandQueue(self.context)
        self.program = pyopencl.Program(self.context, source).build(["-Werror"])
        self.threads: dict[str, int] = {}
        self.signatures = {
            name: [argument.strip() for argument in arguments.split(",")]
            for name, arguments in re.findall(r"__kernel void (\w+)\(([^)]*)\);", source)
        }

    def function(self, name: str) -> Any:
        """f(*pointers, *scalars, blocks, more blocks, threads)."""
        kernel, signature = pyopencl.Kernel(self.program, name), self.signatures[name]

        def launch(*arguments: Any) -> None:
            given, (blocks, more, threads) = arguments[: len(signature)], arguments[len(signature) :]
            for place, (argument, text) in enumerate(zip(given, signature, strict=True)):
                kernel.set_arg(place, memory(argument) if "*" in text else SCALARS[text.split()[0]](argument))
            if blocks and more:
                pyopencl.enqueue_nd_range_kernel(self.queue, kernel, (blocks * threads, more), (threads, 1)).wait()
            self.threads[name] = max(self.threads.get(name, 0), threads)

        return launch


def memory(pointer: Any) -> Any:
    address = pointer.value if isinstance(pointer, ctypes.c_void_p) else pointer
    return pyopencl.SVM(np.ctypeslib.as_array((ctypes.c_byte * 1).from_address(address)))


def load(objects: Path, prefix: str) -> tuple[Any, Kernels]:
    """What an app's linker and loader do, and the module that then is found."""
    tvm = import_tvm(runtime_only=True)
    folder = objects.parent / "linked"
    folder.mkdir()
    with tarfile.open(objects) as archive:
        names = unpacked(archive, folder)
    subprocess.run(["cc", "-shared", "-o", "library.so", *map(str, names)], cwd=folder, check=True)
    found: list[Kernels] = []
    nothing = tvm.get_global_func("ffi.SystemLib")("no symbol starts so")  # a module without functions

    def load_kernels(data: bytes) -> Any:
        found.append(Kernels(opencl_of(bytes(data))))
        for name in found[0].signatures:
            tvm.register_global_func(name, found[0].function(name))
        return nothing

    tvm.register_global_func("device_api.opencl", tvm.get_global_func("device_api.cpu"))
    tvm.register_global_func("ffi.Module.load_from_bytes.opencl", load_kernels)
    ctypes.CDLL(str(folder / "library.so"))
    return tvm.get_global_func("ffi.SystemLib")(prefix), found[0]


class HostMemory(Device):
    """Device memory that the host can read and write."""

    def put(self, array: Any) -> Any:
        return import_tvm(runtime_only=True).runtime.empty(array.shape, str(array.dtype), self.tvm).copyfrom(array)

    def token_slot(self) -> Any:
        return Slot(self)

    def logits_sink(self) -> Any:
        return Copies()


class Slot:
    def __init__(self, memory: HostMemory) -> None:
        self.memory = memory

    def write(self, token: int) -> None:
        self.token = self.memory.put(np.array([token], np.int32))

    def tensor(self) -> Any:
        return self.token


class Copies:
    """A sink without pinned memory, which TVM's runtime has for CUDA alone."""

    def request(self, tensor: Any, shape: tuple[int, ...]) -> None:
        self.array = tensor.numpy().reshape(shape)

    def wait(self) -> Any:
        return self.array


def main(objects: Path, artifact: Path, prefix: str, prompt: list[int], count: int) -> None:
    tvm = import_tvm(runtime_only=True)
    from tvm.runtime.vm import VirtualMachine

    library, kernels = load(objects, prefix)
    device = HostMemory("opencl", tvm.runtime.device("opencl", 0))
    calls.device_of = lambda _path, _rank: device
    calls.load_library = lambda _path, _device: VirtualMachine(library, device.tvm)
    files = {item.name: item for item in artifact.iterdir()} | {"library.so": objects}
    running = engine.Engine(files, sequences=1)
    sequence = running.add_sequence()
    logits = running.prefill(sequence, prompt)
    first, tokens = logits.tolist(), [int(logits.argmax())]
    for _ in range(count - 1):
        tokens.append(int(running.decode(sequence, tokens[-1]).argmax()))
    later = running.logits(sequence, prompt).tolist()
    sampling.check(running)
    print(
        json.dumps(
            {
                "tokens": tokens,
                "logits": first,
                "later": later,
                "threads": kernels.threads,
                "kernels": list(kernels.signatures),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]), int(sys.argv[5]))
