"""Replace the plain loops of labelled operations by a target's kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import ir, transform

from llm_build.core.errors import StepError
from llm_build.lowering.choices import OperatorKernel, name_of, recording
from llm_build.ops.emit import LABEL, fields_of, label_of


def with_schedules(
    schedules: Mapping[str, Any], traits: Any, chosen: list[OperatorKernel] | None = None
) -> transform.Pass:
    """Each labelled function gets the kernel that ``schedules`` has for it on a machine with these ``traits``, or keeps
    its loops where there is none for its shape. ``chosen`` gets what was chosen for each."""

    def schedule(module: ir.IRModule, _context: Any) -> ir.IRModule:
        replaced = {}
        for variable, function in module.functions_items():
            label = label_of(function)
            if label is None:
                continue
            make = schedules.get(label.op)
            with recording() as choices:
                kernel = None if make is None else make(label, traits)
            if chosen is not None:
                schedule = "" if kernel is None else name_of(make)
                chosen.append(OperatorKernel(variable.name_hint, label.op, fields_of(label), schedule, choices))
            replaced[variable] = function.without_attr(LABEL) if kernel is None else kernel
        result = ir.IRModule(dict(module.functions_items()), attrs=module.attrs)
        for variable, function in replaced.items():
            result.update_func(variable, function)
        return result

    return transform.module_pass(schedule, opt_level=0, name="Schedules")


def check_covered(module: ir.IRModule, schedules: Mapping[str, Any]) -> None:
    """StepError for an operation without a kernel, for machines on which plain loops do not run. (An error that is
    raised within a pass comes out of TVM as another.)"""
    for function in module.functions.values():
        label = label_of(function)
        if label is not None and label.op not in schedules:
            raise StepError(f"there is no kernel for {label.op} on a GPU", "build target=cpu")
