"""From kernels to code of a GPU and of its host: what the kinds of GPU targets share.

Each launch of a function becomes a device function of its own; what is left of the function runs on the host, checks
the arguments and launches them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tvm
from tvm import ir, s_tir, tirx

from llm_build.core.errors import UserError
from llm_build.lowering import tir_passes
from llm_build.lowering.kernel_modules import Kernels
from llm_build.lowering.machine import Machine, Pass, host_target
from llm_build.lowering.passes import equal_kernels, shared_memory
from llm_build.lowering.progress import StageProgress
from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import SHARED_BYTES, THREADS, GpuTraits

_KERNELS = Kernels("gpu")
HOST = [
    ("runtime calls", tirx.transform.LowerTVMBuiltin()),
    ("host intrinsics", tirx.transform.LowerIntrin()),
]
DEVICE = [
    ("shared memory outside", shared_memory.hoist_shared_memory()),
    ("device values", tirx.transform.StmtSimplify()),
    ("device intrinsics", tirx.transform.LowerIntrin()),
]


def machine_of(target: Mapping[str, Any], prefix: str = "", **options: Any) -> Machine:
    """Kernels are the same for all architectures of a target: the compiler of each makes what it can of them.

    ``options`` of TVM's target.

    Raises:
        UserError: the kernels here need more threads or shared memory than the target's limits allow.
    """
    _check_limits(target["limits"])
    description = {"kind": target["kind"], "max_num_threads": THREADS, **options}
    tvm_target = tvm.target.Target(description, host=host_target(target))
    return Machine(tvm_target, _KERNELS, GpuTraits(THREADS, SHARED_BYTES), target, prefix)


def _check_limits(limits: Mapping[str, Any]) -> None:
    """UserError where a target has fewer threads or less shared memory than kernels here need; 0 is unknown."""
    threads = limits["max_threads_per_block"] or THREADS
    shared_bytes = limits["max_shared_memory_bytes"] or SHARED_BYTES
    if threads < THREADS or shared_bytes < SHARED_BYTES:
        raise UserError(
            f"target.limits: kernels here need {THREADS} threads per block and {SHARED_BYTES} bytes of shared memory; "
            f"found {threads} and {shared_bytes}",
            "build list target",
        )


def passes(machine: Machine) -> list[Pass]:
    """From kernels to host and device functions, in order. Kernels have no blocks; small functions of the graph may."""
    return [
        ("target", tirx.transform.BindTarget(machine.tvm)),
        *tir_passes.LOOPS,
        *tir_passes.PLAIN,
        ("empty code", tirx.transform.RemoveNoOp()),
        ("unsafe choices", s_tir.transform.RewriteUnsafeSelect()),
        *tir_passes.FUNCTIONS,
    ]


def source_code(functions: Any, machine: Machine) -> Any:
    """A module of the kind's kernel language, which its runtime compiles."""
    return tvm.get_global_func(f"target.build.{machine.kind}")(functions, machine.tvm)


def generate(
    functions: Any,
    machine: Machine,
    progress: StageProgress,
    device_code: Callable[[Any, Machine, StageProgress], Any] | None = None,
) -> Any:
    """The host's module, which imports the device's; ``device_code`` makes that one, else it has the source."""
    progress.expect(len(HOST) + len(DEVICE) + 2)
    parts: dict[bool, dict[Any, Any]] = {True: {}, False: {}}
    for variable, function in functions.functions_items():
        parts[is_host(function)][variable] = function
    host, device = (ir.IRModule(part, attrs=functions.attrs) for part in (parts[True], parts[False]))
    host, device = equal_kernels.merge(host, device)
    for name, transform in HOST:
        progress.start(name)
        host = transform(host)
    for name, transform in DEVICE:
        progress.start(name)
        device = transform(device)
    progress.start(f"{machine.kind} code")
    device_module = (device_code or shipped_source)(device, machine, progress)
    progress.start("host code")
    if machine.library != "so":
        host = host.with_attr("system_lib_prefix", machine.prefix)
    host_module = tvm.get_global_func("target.build.llvm")(host, machine.tvm.host)
    if progress.observer:
        progress.observer.machine_code("host", host_module)
    host_module.import_module(device_module)
    return host_module


def shipped_source(functions: Any, machine: Machine, progress: StageProgress) -> Any:
    """The module that a device's runtime compiles."""
    module = source_code(functions, machine)
    if progress.observer:
        progress.observer.device_code(str(module.inspect_source()), machine.kind)
    return module


def is_host(function: Any) -> bool:
    return str(function.attrs["target"].kind.name) == "llvm"


def metadata(model: Any, target: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing beside what every library has."""
    return {}


def elementwise(args: Sequence[Any], count: int, store: Callable[..., Callable[[Any], None]], traits: GpuTraits) -> Any:
    """A thread for each value."""
    return b.kernel(args, lambda *buffers: b.for_each(traits, count, store(*buffers)))
