"""Replace the plain loops of labelled operations by a target's kernels."""

from __future__ import annotations

from typing import Any

from tvm import ir, transform

from builder.lowering.op import LABEL, label_of
from builder.lowering.schedules.cpu import SCHEDULES
from builder.lowering.schedules.cpu.vector import Isa


def with_cpu_schedules(isa: Isa) -> transform.Pass:
    """Each labelled function gets the kernel of schedules/cpu, or keeps its loops where there is none for its shape."""

    def schedule(module: ir.IRModule, _context: Any) -> ir.IRModule:
        replaced = {}
        for variable, function in module.functions_items():
            label = label_of(function)
            if label is None:
                continue
            make = SCHEDULES.get(label.pop("op"))
            kernel = None if make is None else make(label, isa)
            replaced[variable] = function.without_attr(LABEL) if kernel is None else kernel
        result = ir.IRModule(dict(module.functions_items()), attrs=module.attrs)
        for variable, function in replaced.items():
            result.update_func(variable, function)
        return result

    return transform.module_pass(schedule, opt_level=0, name="CpuSchedules")
