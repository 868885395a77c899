"""From kernels to machine code of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tvm
from tvm import ir, tirx

from llm_build.lowering import tir_passes
from llm_build.lowering.kernel_modules import Kernels
from llm_build.lowering.machine import Machine, Pass, host_target
from llm_build.lowering.progress import StageProgress
from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.vector import Isa
from llm_build.targets import cpu

_KERNELS = Kernels("cpu")


def machine_of(target: Mapping[str, Any], prefix: str = "") -> Machine:
    """``target["cpu"]`` is a level, never "host"."""
    features = cpu.implied_features(target["cpu"], target["features"])
    description = host_target(target)
    arm = target["cpu"] == cpu.ARM  # which converts float16 in hardware, four at a time
    lanes = 16 if "avx512f" in features else 8 if "avx2" in features else 4
    vnni = "avx512vnni" in features or ("avxvnni" in features and lanes == 8)
    isa = Isa(lanes, arm or "f16c" in features, vnni)
    return Machine(tvm.target.Target(description, host=description), _KERNELS, isa, target)


def passes(machine: Machine) -> list[Pass]:
    """From kernels to what LLVM takes, in order. The passes over blocks are for plain loops; kernels have no blocks."""
    return [
        ("target", tirx.transform.BindTarget(machine.tvm)),
        *tir_passes.LOOPS,
        ("index types", tirx.transform.NarrowDataType(32)),
        *tir_passes.PLAIN,
        *tir_passes.FUNCTIONS,
        ("runtime calls", tirx.transform.LowerTVMBuiltin()),
        ("intrinsics", tirx.transform.LowerIntrin()),
    ]


def generate(functions: Any, machine: Machine, progress: StageProgress) -> Any:
    """Machine code of each function, as one module that imports the others: so progress shows, kernel by kernel."""
    build = tvm.get_global_func("target.build.llvm")
    progress.expect(len(functions.functions))
    modules = []
    for variable, function in functions.functions_items():
        progress.start(variable.name_hint)
        modules.append(build(ir.IRModule({variable: function}, attrs=functions.attrs), machine.tvm))
        if progress.observer:
            progress.observer.machine_code(variable.name_hint, modules[-1])
    for module in modules[1:]:
        modules[0].import_module(module)
    return modules[0]


def metadata(model: Any, target: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing beside what every library has."""
    return {}


def elementwise(args: Sequence[Any], count: int, store: Callable[..., Callable[[Any], None]], traits: Isa) -> Any:
    """One value after the other."""

    def body(*buffers: Any) -> None:
        with v.loop(tirx.const(count, "int32")) as index:
            store(*buffers)(index)

    return v.kernel(args, body)
