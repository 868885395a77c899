"""Load a parameter from the tuple that has them all where it is first used.

A graph begins by loading every one, which TVM's virtual machine needs 60 to 100 ns for: of a model with 200 tensors
a GPU waits 15 to 20 us for its first kernel. Later there is time for it, as the GPU has work.
"""

from __future__ import annotations

from typing import Any

from tvm import ir, relax, transform


def load_at_first_use() -> transform.Pass:
    """For a module without dataflow."""

    def rewrite(module: ir.IRModule, _context: Any) -> ir.IRModule:
        functions = {v: _loading_late(f) if isinstance(f, relax.Function) else f for v, f in module.functions_items()}
        return ir.IRModule(functions, attrs=module.attrs)

    return transform.module_pass(rewrite, opt_level=0, name="LazyParamLoad")


def _loading_late(function: relax.Function) -> relax.Function:
    """The same, but for the places of these bindings."""
    tuples, waiting = set(function.params), dict[relax.Var, relax.VarBinding]()

    def needed(value: Any) -> list[Any]:
        return [waiting.pop(each) for each in relax.analysis.free_vars(value) if each in waiting]

    blocks = []
    for block in function.body.blocks:
        bindings: list[Any] = []
        for binding in block.bindings:
            if isinstance(binding.value, relax.TupleGetItem) and binding.value.tuple_value in tuples:
                waiting[binding.var] = binding
            else:
                bindings += [*needed(binding.value), binding]
        blocks.append(bindings)
    blocks.append(needed(function.body.body))
    body = relax.SeqExpr([relax.BindingBlock(each) for each in blocks if each], function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span)
