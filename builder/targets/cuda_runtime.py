"""TVM's CUDA runtime, loaded where there is a driver, and for compiling also where there is none.

libtvm_runtime_cuda.so is linked to NVIDIA's driver and runtime libraries, but a compiler calls nothing of them. Where
they are missing, two small libraries of the same names are made whose functions all return an error.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llm_build.core.errors import StepError, UserError
from llm_build.targets.cuda import files_of_packages
from llm_build.targets.link import find_linker
from llm_build.targets.tvm_import import import_tvm

DRIVER, RUNTIME = "libcuda.so.1", "libcudart.so.13"
_FOLDERS = ("/usr/local/cuda/lib64", "/usr/local/cuda/lib", "/opt/cuda/lib64")
_CREATE = "ffi.Module.create.cuda"  # what the runtime registers
_UNKNOWN_ERROR = 999  # cudaErrorUnknown
DRIVER_FUNCTIONS = (
    "cuDeviceGetName", "cuFuncSetAttribute", "cuGetErrorName", "cuGetErrorString", "cuLaunchKernelEx",
    "cuModuleGetFunction", "cuModuleLoadData", "cuModuleUnload", "cuTensorMapEncodeTiled",
)  # fmt: skip
RUNTIME_FUNCTIONS = (
    "DeviceGetAttribute", "EventCreate", "EventDestroy", "EventElapsedTime", "EventRecord", "EventSynchronize", "Free",
    "FreeHost", "GetDevice", "GetDeviceCount", "GetDeviceProperties", "GetErrorName", "GetErrorString", "GetLastError",
    "GraphDestroy", "GraphExecDestroy", "GraphInstantiate", "GraphLaunch", "Malloc", "MallocHost", "MemGetInfo",
    "MemcpyAsync", "MemcpyPeerAsync", "PeekAtLastError", "SetDevice", "StreamBeginCapture", "StreamCreate",
    "StreamCreateWithFlags", "StreamDestroy", "StreamEndCapture", "StreamSynchronize", "StreamWaitEvent",
)  # fmt: skip


def load_for_compiling() -> None:
    """Have TVM make CUDA modules of machine code. StepError where no stand-in can be made for a missing library."""
    _load_runtime(stand_ins=True)


def load_for_running() -> None:
    """Have TVM run on this machine's GPU. UserError when its driver or CUDA's runtime library is missing."""
    _load_runtime(stand_ins=False)


def _load_runtime(stand_ins: bool) -> None:
    """Whatever the process has loaded before: stand-ins that it compiled with never serve to run."""
    tvm = import_tvm(runtime_only=not stand_ins)
    missing = _missing_libraries()
    if missing and not stand_ins:
        raise UserError(
            f"no {' and no '.join(missing)} on this machine: TVM cannot use a GPU",
            "install NVIDIA's driver, and: pip install 'llm-build[cuda]'",
        )
    if _is_registered(tvm):
        return
    for name in missing:
        _load_stub(name)
    _load_tvm_library("tvm_runtime_cuda")
    assert _is_registered(tvm)


@cache
def _missing_libraries() -> tuple[str, ...]:
    """Those of NVIDIA's that this machine has not; asked before a stand-in answers to the name."""
    return tuple(name for name in (DRIVER, RUNTIME) if _open(name) is None)


def _is_registered(tvm: Any) -> bool:
    return tvm.get_global_func(_CREATE, allow_missing=True) is not None


def _load_tvm_library(name: str) -> None:
    from tvm.libinfo import package_lib_paths
    from tvm_ffi.libinfo import load_lib_ctypes

    load_lib_ctypes("tvm", name, "RTLD_LOCAL", extra_lib_paths=package_lib_paths())


def _open(name: str) -> ctypes.CDLL | None:
    """A shared library of the system, of the toolkit or of PyPI's nvidia-cuda-runtime, for all to see."""
    places = [name, *(f"{place}/{name}" for place in _FOLDERS), *map(str, files_of_packages(f"lib/{name}"))]
    for place in places:
        try:
            return ctypes.CDLL(place, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
    return None


def open_linked_library(name: str) -> ctypes.CDLL:
    """RUNTIME or DRIVER, which TVM's runtime is linked to: where that runs on a GPU, they are there."""
    found = _open(name)
    assert found is not None, "TVM's runtime is linked to it"
    return found


def check_cuda(name: str, code: int) -> None:
    """StepError when a function of CUDA's runtime or driver says that it did not."""
    if code:
        raise StepError(f"{name}: error {code}")


def _load_stub(name: str) -> None:
    """Make and load a library with the functions that TVM's runtime is linked to."""
    if name == DRIVER:
        functions: Sequence[str] = DRIVER_FUNCTIONS
    else:
        functions = [f"cuda{function}" for function in RUNTIME_FUNCTIONS]
    with TemporaryDirectory(prefix="llm-build-cuda-") as folder:
        Path(folder, "stand_in.c").write_text(
            "".join(f"int {function}(void) {{ return {_UNKNOWN_ERROR}; }}\n" for function in functions)
        )
        Path(folder, "versions").write_text(f"{name} {{ global: *; }};\n")
        start = find_linker()
        if start is None or os.path.basename(start[0]) in ("ld", "ld.lld"):
            raise StepError(f"no C compiler, and none of {name}, which it could replace", "apt-get install gcc")
        flags = ["-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,{name}", "-Wl,--version-script=versions"]
        command = [*start, *flags, "-o", name, "stand_in.c"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StepError(f"{' '.join(start)} could not make a stand-in for {name}: {done.stderr.strip()[-1000:]}")
        ctypes.CDLL(str(Path(folder, name)), ctypes.RTLD_GLOBAL)
