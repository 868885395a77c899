"""The products of gate and up weights and the activation of the gate as one operation, where there is one row.

A decoded token has one such pair a layer, and the activation's kernel takes longer to start than to run.
"""

from __future__ import annotations

from typing import Any

from tvm import ir, relax, transform
from tvm.relax.expr_functor import PyExprMutator, mutator

from llm_build.ops import emit as op
from llm_build.ops.gated_linear import GATES, GatedLinearLabel, gated_linear
from llm_build.ops.gates import GateLabel
from llm_build.ops.linear import LinearLabel

_FUNCTION = "decode"
_NAME = "gated_linear"


def fuse_gate_up() -> transform.Pass:
    """Comes before operations lose their labels."""

    def rewrite(module: ir.IRModule, _context: Any) -> ir.IRModule:
        return op.rewritten(_GateFuser(module), _FUNCTION)

    return transform.module_pass(rewrite, opt_level=0, name="FuseGateUp")


@mutator
class _GateFuser(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: ir.IRModule) -> None:
        super().__init__(module)
        self.module = module
        self.products: dict[Any, Any] = {}  # variable of a product that a gate alone reads -> the product
        self.made: dict[op.Label, Any] = {}  # label -> the function

    def gate(self, value: Any) -> GateLabel | None:
        label = op.label_called(self.module, value)
        return label if isinstance(label, GateLabel) and label.op in GATES else None

    def visit_dataflow_block_(self, block: Any) -> Any:
        readers, found = relax.analysis.udchain(block), {}
        for binding in block.bindings:
            if _is_plain(op.label_called(self.module, binding.value), binding.value):
                (reader, *others) = readers[binding.var]
                if not others:
                    found[binding.var] = (reader, binding.value)
        gates = {binding.var for binding in block.bindings if self.gate(binding.value)}
        self.products |= {var: made for var, (reader, made) in found.items() if reader in gates}
        return super().visit_dataflow_block_(block)

    def visit_var_binding_(self, binding: Any) -> None:
        if binding.var in self.products:
            return
        gate = self.gate(binding.value)
        if gate and (of := binding.value.args[1][0]) in self.products:
            self.set_var_remap(binding.var, self.builder_.emit(self.gated(gate, self.products[of], binding.var)))
            return
        super().visit_var_binding_(binding)

    def gated(self, gate: GateLabel, made: Any, var: Any) -> Any:
        linear = op.label_called(self.module, made)
        assert isinstance(linear, LinearLabel)
        label = GatedLinearLabel(gate.width, gate.op, linear.weight)
        arguments = [self.visit_expr(each) for each in made.args[1]]
        if label not in self.made:
            signature = tuple((tuple(map(int, each.ty.shape)), str(each.ty.dtype)) for each in arguments)
            self.made[label] = self.builder_.add_func(op.prim_func(label, gated_linear, signature), _NAME)
        return relax.call_tir(self.made[label], arguments, var.ty)


def _is_plain(label: op.Label | None, call: Any) -> bool:
    """Whether it is a product of one row and nothing else, whose rows can be taken in pairs."""
    if type(label) is not LinearLabel or label.bias or label.residual:
        return False
    return label.weight.layout != "KN" and op.has_one_row(call.args[1][0])
