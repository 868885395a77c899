"""From kernels to machine code of a CPU."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import ir, tirx

from builder.lowering import tir_passes as flat_code
from builder.lowering.machine import Machine
from builder.lowering.progress import Stages

Pass = tuple[str, Any]


def passes(machine: Machine) -> list[Pass]:
    """From kernels to what LLVM takes, in order. The passes over blocks are for plain loops; kernels have no blocks."""
    return [
        ("target", tirx.transform.BindTarget(machine.tvm)),
        *flat_code.LOOPS,
        ("index types", tirx.transform.NarrowDataType(32)),
        *flat_code.PLAIN,
        *flat_code.FUNCTIONS,
        ("runtime calls", tirx.transform.LowerTVMBuiltin()),
        ("intrinsics", tirx.transform.LowerIntrin()),
    ]


def generate(functions: Any, machine: Machine, stages: Stages) -> Any:
    """Machine code of each function, as one module that imports the others: so progress shows, kernel by kernel."""
    build = tvm.get_global_func("target.build.llvm")
    stages.total += len(functions.functions)
    modules = []
    for variable, function in functions.functions_items():
        stages.start(variable.name_hint)
        modules.append(build(ir.IRModule({variable: function}, attrs=functions.attrs), machine.tvm))
    for module in modules[1:]:
        modules[0].import_module(module)
    return modules[0]
