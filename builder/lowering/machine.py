"""What a recipe's target is to the code generator: TVM's target, the kernels for it, and what they are written for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import tvm

from builder.core.errors import UserError
from builder.lowering.backends import dependent_launch as early_launch
from builder.lowering.schedules import cpu as cpu_schedules
from builder.lowering.schedules import gpu as gpu_schedules
from builder.lowering.schedules.cpu import attention, cache, sampling
from builder.lowering.schedules.cpu.vector import Isa
from builder.lowering.schedules.gpu import attention as gpu_attention
from builder.lowering.schedules.gpu import cache as gpu_cache
from builder.lowering.schedules.gpu import sampling as gpu_sampling
from builder.lowering.schedules.gpu.block import SHARED_BYTES, THREADS, Device
from builder.targets import cpu


@dataclass(frozen=True, slots=True)
class Kernels:
    """Kernels of a kind of machine; the modules of both kinds export the same names. Each is made for a ``machine``."""

    schedules: Mapping[str, Any]
    attention: ModuleType
    cache: ModuleType
    sampling: ModuleType


CUDA_SHARED_BYTES, OTHERS = 48 << 10, 4 << 10  # that every block may have; of them for other things than x
CPU = Kernels(cpu_schedules.SCHEDULES, attention, cache, sampling)
GPU = Kernels(gpu_schedules.SCHEDULES, gpu_attention, gpu_cache, gpu_sampling)


@dataclass(frozen=True, slots=True)
class Machine:
    """``tvm``: TVM's target, with its host; ``made_for``: an Isa or a Device; ``description``: the recipe's target;
    ``prefix``: of the symbols of a library that is linked into an app, where there may be others."""

    tvm: Any
    kernels: Kernels
    made_for: Any
    description: Mapping[str, Any]
    prefix: str = ""

    @property
    def kind(self) -> str:
        return str(self.description["kind"])

    @property
    def library(self) -> str:
        """What the library's file ends with."""
        return str(self.description.get("library", "so"))


def machine_of(target: Mapping[str, Any], prefix: str = "") -> Machine:
    """From the recipe's target, as a dict. WebLLM looks for symbols without a ``prefix``; a page has one library."""
    if target["kind"] == "cpu":
        return cpu_machine(target)
    return replace(gpu_machine(target), prefix="" if target["kind"] == "webgpu" else prefix)


def cpu_machine(target: Mapping[str, Any]) -> Machine:
    """``cpu`` is a level, never "host"."""
    features = cpu.implied(target["cpu"], target["features"])
    description = llvm(target)
    arm = target["cpu"] == cpu.ARM  # which converts float16 in hardware, four at a time
    lanes = 16 if "avx512f" in features else 8 if "avx2" in features else 4
    vnni = "avx512vnni" in features or ("avxvnni" in features and lanes == 8)
    isa = Isa(lanes, arm or "f16c" in features, vnni)
    return Machine(tvm.target.Target(description, host=description), CPU, isa, target)


def llvm(target: Mapping[str, Any]) -> dict[str, Any]:
    """The host code's target."""
    description: dict[str, Any] = {"kind": "llvm", "mtriple": target["triple"]}
    if target["cpu"] not in ("", cpu.ARM):
        description["mcpu"] = target["cpu"]
    if target["features"]:
        description["mattr"] = [f"+{name}" for name in target["features"]]
    return description


def gpu_machine(target: Mapping[str, Any]) -> Machine:
    """Kernels are the same for all architectures of a target: the compiler of each makes what it can of them.

    Raises:
        UserError: the kernels here need more threads or shared memory than the target's limits allow.
    """
    limits = target["limits"]
    threads = limits["max_threads_per_block"] or THREADS
    shared_bytes = limits["max_shared_memory_bytes"] or SHARED_BYTES
    if threads < THREADS or shared_bytes < SHARED_BYTES:
        raise UserError(
            f"target.limits: kernels here need {THREADS} threads per block and {SHARED_BYTES} bytes of shared memory; "
            f"found {threads} and {shared_bytes}",
            "build list target",
        )
    description: dict[str, Any] = {"kind": target["kind"], "max_num_threads": THREADS}
    if target["kind"] == "cuda":
        description["arch"] = target["arch"][-1]  # it steers no kernel here; the compiler gets all of them
    device = Device(THREADS, SHARED_BYTES)
    if early_launch.is_possible(target):
        device = replace(device, ready=early_launch.READY, start=early_launch.START, late=early_launch.LATE)
    if target["kind"] == "cuda":
        room = (min(limits["max_shared_memory_bytes"] or CUDA_SHARED_BYTES, CUDA_SHARED_BYTES) - OTHERS) // 4
        device = replace(device, strips=2, room=room, load_bytes=16, shuffles=True)
    return Machine(tvm.target.Target(description, host=llvm(target)), GPU, device, target)
