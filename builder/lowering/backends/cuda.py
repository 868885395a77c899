"""CUDA: kernels become machine code for each architecture of the target."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import tvm

from llm_build.lowering.backends import dependent_launch, gpu
from llm_build.lowering.backends.gpu import elementwise, passes
from llm_build.lowering.machine import Machine
from llm_build.lowering.passes import cuda_graphs
from llm_build.lowering.progress import StageProgress
from llm_build.lowering.schedules.gpu import tensor_products
from llm_build.targets import cuda, cuda_runtime, flash_attention, peer_allreduce
from llm_build.targets import tensor_products as tensor_products_text

__all__ = ["elementwise", "generate", "machine_of", "metadata", "passes"]

_SHARED_BYTES = 48 << 10  # that every block may have
_OTHER_BYTES = 4 << 10  # of them for other things than an input row
_LOAD_BYTES = 16
_ROWS_PER_THREAD = 8  # of a large product: NVIDIA's GPUs have the registers
_COMPILER = "tvm_callback_cuda_compile"  # the function of the registry that TVM compiles CUDA with


def machine_of(target: Mapping[str, Any], prefix: str = "") -> Machine:
    """As for every GPU, and with what NVIDIA's have besides."""
    arch = target["arch"][-1]  # it steers no kernel here; the compiler gets all of them
    machine = gpu.machine_of(target, prefix, arch=arch)
    limit = target["limits"]["max_shared_memory_bytes"] or _SHARED_BYTES
    traits = replace(
        machine.traits, rows_per_thread=_ROWS_PER_THREAD, smem_values=(min(limit, _SHARED_BYTES) - _OTHER_BYTES) // 4
    )
    traits = replace(traits, load_bytes=_LOAD_BYTES, shuffles=True)
    traits = replace(traits, tensor_cores=cuda.has_mma(target["arch"]), wgmma=cuda.has_wgmma(target["arch"]))
    if dependent_launch.is_possible(target):
        names = dependent_launch
        traits = replace(traits, pdl_wait=names.WAIT, pdl_trigger=names.TRIGGER, pdl_off=names.OFF)
    if traits.wgmma:
        traits = replace(traits, tensor_products=tensor_products)
    return replace(machine, traits=traits)


def generate(functions: Any, machine: Machine, progress: StageProgress) -> Any:
    """The host's module, which imports the device's."""
    return gpu.generate(functions, machine, progress, _device_code)


def _device_code(functions: Any, machine: Machine, progress: StageProgress) -> Any:
    """A module of machine code for each architecture of the target."""
    arch = tuple(machine.description["arch"])
    cuda_runtime.load_for_compiling()
    dependent = dependent_launch.is_possible(machine.description)

    def compiled(source: str) -> bytes:
        declared = peer_allreduce.LINES + peer_allreduce.SENDER if "keep_peers(" in source else ""
        declared += flash_attention.declared(source) + tensor_products_text.source(source)
        whole = declared + (dependent_launch.insert_waits(source) if dependent else source)
        code = cuda.compile_kernels(whole, arch)
        if progress.observer:
            progress.observer.device_code(whole, machine.kind)
            progress.observer.device_binary(code, "fatbin")
        return code

    tvm.register_global_func(_COMPILER, compiled, override=True)
    return gpu.source_code(dependent_launch.mark_kernels()(functions) if dependent else functions, machine)


def metadata(model: Any, target: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the library captures graphs itself, what type its products round to, if not float32, and for several
    ranks the code of the kernels that sum over GPUs."""
    peers = {peer_allreduce.NAME: _peer_allreduce_code(target["arch"])} if model.ranks > 1 else {}
    rounds = cuda.has_wgmma(target["arch"]) and model.dtype != "float32"
    arithmetic = {"arithmetic": model.dtype} if rounds else {}
    return {"cuda_graphs": cuda_graphs.library_captures(model, target), **arithmetic, **peers}


def _peer_allreduce_code(arch: Sequence[str]) -> str:
    """The machine code of the kernels that sum over GPUs, for these architectures, in base64 for ``_metadata``."""
    source = cuda.PDL_FUNCTIONS + peer_allreduce.LINES + peer_allreduce.SOURCE
    return base64.b64encode(cuda.compile_kernels(source, arch)).decode()
