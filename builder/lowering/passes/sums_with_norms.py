"""A sum over GPUs and the RMS norm that follows as one call (builder/targets/peer_sum.py), where there are few rows.

A decoded token has two such pairs a layer, and each of their kernels takes longer to start than to run.
"""

from __future__ import annotations

from typing import Any

from tvm import ir, relax, transform
from tvm.relax.expr_functor import PyExprMutator, mutator

from builder.lowering.op import label_of
from builder.targets.peer_sum import NORM_PAIRS, SUM_NORM

FUNCTIONS = ("decode", "batch_decode")
ALL_REDUCE = "runtime.disco.allreduce"


def fused() -> transform.Pass:
    """Comes before operations lose their labels."""

    def rewrite(module: ir.IRModule, _context: Any) -> ir.IRModule:
        result = ir.IRModule(dict(module.functions_items()), attrs=module.attrs)
        for variable, function in module.functions_items():
            if variable.name_hint in FUNCTIONS:
                result.update_func(variable, _Pairs(module).visit_expr(function))
        return result

    return transform.module_pass(rewrite, opt_level=0, name="SumsWithNorms")


@mutator
class _Pairs(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: ir.IRModule) -> None:
        super().__init__(module)
        self.module = module
        self.norms: dict[Any, Any] = {}  # variable of a sum -> the norm of it
        self.made: dict[Any, Any] = {}  # variable of a sum -> the variable of the call that makes both

    def visit_dataflow_block_(self, block: Any) -> Any:
        sums = {binding.var for binding in block.bindings if is_sum(binding.value)}
        for binding in block.bindings:
            if (normed := self.normed(binding.value)) in sums:
                self.norms.setdefault(normed, binding.value)
        return super().visit_dataflow_block_(block)

    def normed(self, value: Any) -> Any:
        """The variable that an RMS norm is of, if the kernel has room for its width; of all else None."""
        if not isinstance(value, relax.Call) or not value.op.same_as(ir.Op.get("relax.call_tir")):
            return None
        label = label_of(self.module[value.args[0]])
        if label is None or label["op"] != "rms_norm" or label["residual"]:
            return None
        return value.args[1][0] if label["width"] % 2 == 0 and label["width"] <= 2 * NORM_PAIRS else None

    def visit_var_binding_(self, binding: Any) -> None:
        normed = self.normed(binding.value)
        if binding.var in self.norms:
            self.made[binding.var] = self.builder_.emit(self.pair(binding))
            self.set_var_remap(binding.var, self.part_of(binding.var, 0))
        elif normed in self.norms and self.norms[normed].same_as(binding.value):
            self.set_var_remap(binding.var, self.part_of(normed, 1))
        else:
            super().visit_var_binding_(binding)

    def part_of(self, variable: Any, index: int) -> Any:
        return self.builder_.emit(relax.TupleGetItem(self.made[variable], index))

    def pair(self, binding: Any) -> Any:
        norm = self.norms[binding.var]
        label = label_of(self.module[norm.args[0]])
        assert label is not None
        part, weight = (self.visit_expr(each) for each in (binding.value.args[1][0], norm.args[1][1]))
        arguments = [part, weight, relax.prim_value(float(label["eps"]))]
        return relax.call_dps_packed(SUM_NORM, arguments, out_ty=[binding.var.ty, binding.var.ty])


def is_sum(value: Any) -> bool:
    if not isinstance(value, relax.Call) or not value.op.same_as(ir.Op.get("relax.call_dps_packed")):
        return False
    return value.args[0].global_symbol == ALL_REDUCE and int(value.args[1][1].values[0]) == 0
