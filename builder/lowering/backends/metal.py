"""Metal: kernels are compiled where there is Apple's compiler, else shipped as source, which the device compiles."""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi

from llm_build.lowering.backends import gpu
from llm_build.lowering.backends.gpu import elementwise, machine_of, metadata, passes
from llm_build.lowering.machine import Machine
from llm_build.lowering.progress import StageProgress
from llm_build.targets import apple

__all__ = ["elementwise", "generate", "machine_of", "metadata", "passes"]

_COMPILER = "tvm_callback_metal_compile"  # the function of the registry that TVM compiles Metal with


def generate(functions: Any, machine: Machine, progress: StageProgress) -> Any:
    """The host's module, which imports the device's."""
    return gpu.generate(functions, machine, progress, _device_code)


def _device_code(functions: Any, machine: Machine, progress: StageProgress) -> Any:
    """A module of Metal libraries where there is Apple's compiler, else of their source."""
    triple = machine.description["triple"]

    def compiled(source: str, *_target: Any) -> tuple[bytes, str]:
        code = apple.compile_kernels(source, triple)
        if progress.observer:
            progress.observer.device_code(source, machine.kind)
            progress.observer.device_binary(code, apple.COMPILED)
        return code, apple.COMPILED

    if apple.find_xcrun() is None:
        return gpu.shipped_source(functions, machine, progress)
    tvm.register_global_func(_COMPILER, compiled, override=True)
    try:
        return gpu.source_code(functions, machine)
    finally:
        tvm_ffi.registry.remove_global_func(_COMPILER)
