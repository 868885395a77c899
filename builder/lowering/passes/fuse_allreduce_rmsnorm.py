"""A sum over GPUs and the RMS norm that follows as one call (targets/peer_allreduce.py), where there are few rows.

A decoded token has two such pairs a layer, and each of their kernels takes longer to start than to run. Where there is
one row, the product before the sum sends its results to the other GPUs itself. The runtime that has these calls tells
all ranks the same tokens: they are not broadcast.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tvm import ir, relax, transform
from tvm.relax.expr_functor import PyExprMutator, mutator

from llm_build.lowering.machine import Machine
from llm_build.lowering.schedules.gpu import peers
from llm_build.lowering.schedules.gpu.gemv import can_send
from llm_build.lowering.schedules.gpu.weights import weight_of
from llm_build.ops import emit as op
from llm_build.ops.linear import LinearLabel
from llm_build.ops.norms import RMSNormLabel
from llm_build.targets.peer_allreduce import NORM_PAIRS, SET_PEERS, SUM_NORM

_ONE_ROW, _SOME_ROWS, _TOKENS = "decode", "batch_decode", "embed"
_BROADCAST = "runtime.disco.broadcast_from_worker0"
_ALL_REDUCE = "runtime.disco.allreduce"


def fuse_allreduce_rmsnorm(machine: Machine) -> transform.Pass:
    """Comes before operations lose their labels."""

    def rewrite(module: ir.IRModule, _context: Any) -> ir.IRModule:
        for name in (_ONE_ROW, _SOME_ROWS, _TOKENS):
            module = op.rewritten(_AllreduceFuser(module, machine), name)
        return module

    return transform.module_pass(rewrite, opt_level=0, name="FuseAllreduceRmsNorm")


def attach_peers(machine: Machine) -> transform.Pass:
    """Add the function that tells products where to send."""

    def add(module: ir.IRModule, _context: Any) -> ir.IRModule:
        result = ir.IRModule(dict(module.functions_items()), attrs=module.attrs)
        result[SET_PEERS] = peers.set_peers(machine.traits).with_attr("global_symbol", SET_PEERS)
        return result

    return transform.module_pass(add, opt_level=0, name="AttachPeers")


@mutator
class _AllreduceFuser(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: ir.IRModule, machine: Machine) -> None:
        super().__init__(module)
        self.module, self.machine = module, machine
        self.norms: dict[Any, Any] = {}  # variable of a sum -> the norm of it
        self.made: dict[Any, Any] = {}  # variable of a sum -> the variable of the call that makes both
        self.sent: set[Any] = set()  # variables of products that are sent as they are made

    def visit_dataflow_block_(self, block: Any) -> Any:
        sums = {binding.var for binding in block.bindings if _is_allreduce(binding.value)}
        for binding in block.bindings:
            if (normed := self.normed(binding.value)) in sums:
                self.norms.setdefault(normed, binding.value)
        parts = {binding.value.args[1][0] for binding in block.bindings if binding.var in self.norms}
        for binding in block.bindings:
            if binding.var in parts and _is_sendable(self.label(binding.value), binding.var):
                self.sent.add(binding.var)
        return super().visit_dataflow_block_(block)

    def normed(self, value: Any) -> Any:
        """The variable that an RMS norm is of, if the kernel has room for its width; of all else None."""
        label = self.label(value)
        if type(label) is not RMSNormLabel or label.residual:
            return None
        return value.args[1][0] if label.width % 2 == 0 and label.width <= 2 * NORM_PAIRS else None

    def label(self, value: Any) -> op.Label | None:
        return op.label_called(self.module, value)

    def visit_var_binding_(self, binding: Any) -> None:
        normed = self.normed(binding.value)
        if binding.var in self.norms:
            self.made[binding.var] = self.builder_.emit(self.pair(binding))
            self.set_var_remap(binding.var, self.part_of(binding.var, 0))
        elif normed in self.norms and self.norms[normed].same_as(binding.value):
            self.set_var_remap(binding.var, self.part_of(normed, 1))
        elif _is_packed_call(binding.value, _BROADCAST):
            self.set_var_remap(binding.var, self.visit_expr(binding.value.args[1][0]))
        elif binding.var in self.sent:
            self.set_var_remap(binding.var, self.builder_.emit(self.sending(binding.value, binding.var.ty)))
        else:
            super().visit_var_binding_(binding)

    def sending(self, call: Any, made: Any) -> Any:
        label = self.label(call)
        assert isinstance(label, LinearLabel)
        sent = op.with_label(self.module[call.args[0]], replace(label, sent=True))
        function = self.builder_.add_func(sent, "sent_linear")
        return relax.call_tir(function, [self.visit_expr(each) for each in call.args[1]], made)

    def part_of(self, variable: Any, index: int) -> Any:
        return self.builder_.emit(relax.TupleGetItem(self.made[variable], index))

    def pair(self, binding: Any) -> Any:
        norm, of = self.norms[binding.var], binding.value.args[1][0]
        part, weight = (self.visit_expr(each) for each in (of, norm.args[1][1]))
        label, both = self.label(norm), [binding.var.ty, binding.var.ty]
        assert isinstance(label, RMSNormLabel)
        if of not in self.sent:
            return relax.call_dps_packed(SUM_NORM, [part, weight, relax.prim_value(float(label.eps))], out_ty=both)
        kernel = peers.sent_norm(label.width, label.dtype, float(label.eps), self.machine.traits)
        return relax.call_tir(self.builder_.add_func(kernel, "sent_norm"), [part, weight], both)


def _is_allreduce(value: Any) -> bool:
    return _is_packed_call(value, _ALL_REDUCE) and int(value.args[1][1].values[0]) == 0


def _is_packed_call(value: Any, name: str) -> bool:
    packed = isinstance(value, relax.Call) and value.op.same_as(ir.Op.get("relax.call_dps_packed"))
    return packed and value.args[0].global_symbol == name


def _is_sendable(label: op.Label | None, made: Any) -> bool:
    """Whether it is one row of a product whose kernel can send it."""
    if not isinstance(label, LinearLabel) or not op.has_one_row(made):
        return False
    return can_send(weight_of(label.weight), label.weight.n)
