"""From kernels to code of a GPU and of its host.

Each launch of a function becomes a device function of its own; what is left of the function runs on the host, checks
the arguments and launches them.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import ir, s_tir, tirx

from builder.lowering import tir_passes as flat_code
from builder.lowering.backends import dependent_launch as early_launch
from builder.lowering.machine import Machine
from builder.lowering.passes import shared_memory
from builder.lowering.progress import Stages
from builder.targets import apple, cuda, cuda_runtime, peer_sum

Pass = tuple[str, Any]


def passes(machine: Machine) -> list[Pass]:
    """From kernels to host and device functions, in order. Kernels have no blocks; small functions of the graph may."""
    return [
        ("target", tirx.transform.BindTarget(machine.tvm)),
        *flat_code.LOOPS,
        *flat_code.PLAIN,
        ("unsafe choices", s_tir.transform.RewriteUnsafeSelect()),
        *flat_code.FUNCTIONS,
    ]


HOST = [
    ("runtime calls", tirx.transform.LowerTVMBuiltin()),
    ("host intrinsics", tirx.transform.LowerIntrin()),
]
DEVICE = [
    ("shared memory outside", shared_memory.outside()),
    ("device values", tirx.transform.StmtSimplify()),
    ("device intrinsics", tirx.transform.LowerIntrin()),
]


def source_code(functions: Any, machine: Machine) -> Any:
    """A module of the kind's kernel language, which its runtime compiles."""
    return tvm.get_global_func(f"target.build.{machine.kind}")(functions, machine.tvm)


def cuda_code(functions: Any, machine: Machine) -> Any:
    """A module of machine code for each architecture of the target."""
    arch = tuple(machine.description["arch"])
    cuda_runtime.load_for_compiling()

    early = early_launch.is_possible(machine.description)

    def compiled(source: str) -> bytes:
        known = peer_sum.LINES + peer_sum.SENDER if "keep_peers(" in source else ""
        return cuda.compile_kernels(known + (early_launch.waiting(source) if early else source), arch)

    tvm.register_global_func("tvm_callback_cuda_compile", compiled, override=True)
    return source_code(early_launch.tagged()(functions) if early else functions, machine)


def metal_code(functions: Any, machine: Machine) -> Any:
    """A module of Metal libraries where there is Apple's compiler, else of their source."""
    triple = machine.description["triple"]

    def compiled(source: str, *_target: Any) -> tuple[bytes, str]:
        return apple.compile_kernels(source, triple), apple.COMPILED

    if apple.find_xcrun() is None:
        return source_code(functions, machine)
    tvm.register_global_func(METAL_COMPILER, compiled, override=True)
    try:
        return source_code(functions, machine)
    finally:
        tvm_ffi.registry.remove_global_func(METAL_COMPILER)


METAL_COMPILER = "tvm_callback_metal_compile"
DEVICE_CODE = {"cuda": cuda_code, "metal": metal_code}


def generate(functions: Any, machine: Machine, stages: Stages) -> Any:
    """The host's module, which imports the device's."""
    stages.total += len(HOST) + len(DEVICE) + 2
    parts: dict[bool, dict[Any, Any]] = {True: {}, False: {}}
    for variable, function in functions.functions_items():
        parts[is_host(function)][variable] = function
    host, device = (ir.IRModule(part, attrs=functions.attrs) for part in (parts[True], parts[False]))
    for name, transform in HOST:
        stages.start(name)
        host = transform(host)
    for name, transform in DEVICE:
        stages.start(name)
        device = transform(device)
    stages.start(f"{machine.kind} code")
    device_code = DEVICE_CODE.get(machine.kind, source_code)(device, machine)
    stages.start("host code")
    if machine.library != "so":
        host = host.with_attr("system_lib_prefix", machine.prefix)
    host_code = tvm.get_global_func("target.build.llvm")(host, machine.tvm.host)
    host_code.import_module(device_code)
    return host_code


def is_host(function: Any) -> bool:
    return str(function.attrs["target"].kind.name) == "llvm"
