"""From kernels to machine code of a CPU."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import ir, s_tir, tirx

from builder.lowering.machine import Machine
from builder.lowering.stages import Stages

Pass = tuple[str, Any]


def passes(machine: Machine) -> list[Pass]:
    """From kernels to what LLVM takes, in order. The passes over blocks are for plain loops; kernels have no blocks."""
    return [
        ("target", tirx.transform.BindTarget(machine.tvm)),
        ("reduction starts", s_tir.transform.LowerInitBlock()),
        ("buffer places", s_tir.transform.PlanAndUpdateBufferAllocationLocation()),
        ("block variables", s_tir.transform.ConvertBlocksToOpaque()),
        ("matched buffers", s_tir.transform.LowerMatchBuffer()),
        ("blocks", s_tir.transform.LowerOpaqueBlock()),
        ("flat buffers", tirx.transform.FlattenBuffer()),
        ("bfloat16 values", tirx.transform.BF16ComputeLegalize()),
        ("index types", tirx.transform.NarrowDataType(32)),
        ("vectors", tirx.transform.VectorizeLoop(True)),
        ("simplification", tirx.transform.StmtSimplify()),
        ("empty code", tirx.transform.RemoveNoOp()),
        ("memory check", tirx.transform.VerifyMemory()),
        ("entry", tirx.transform.AnnotateEntryFunc()),
        ("host and device", tirx.transform.SplitHostDevice()),
        ("calling convention", tirx.transform.MakePackedAPI()),
        ("bfloat16 as integers", tirx.transform.BF16StorageLegalize()),
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
