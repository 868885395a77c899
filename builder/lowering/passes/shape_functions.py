"""The functions that work out sizes at run time, in an order that is the same each time.

TVM's VMShapeLower walks its table of expressions by their addresses: what one function works out comes in any order,
and two that say the same in another order are two functions. So a library's bytes would differ from build to build.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir, relax, tirx, transform
from tvm.relax.expr_functor import PyExprMutator, mutator

NAME = "shape_func"  # TVM's: shape_func, shape_func1, ...


def ordered() -> transform.Pass:
    """Comes after VMShapeLower."""

    def rewrite(module: ir.IRModule, _context: Any) -> ir.IRModule:
        functions = dict(module.functions_items())
        found = sorted((v for v in functions if is_shape_function(v, functions[v])), key=number)
        kept: list[tuple[ir.GlobalVar, Any]] = []
        renamed: dict[str, ir.GlobalVar] = {}
        for variable in found:
            function = sorted_stores(functions.pop(variable))
            same = next((v for v, other in kept if tvm_ffi.structural_equal(other, function)), None)
            if same is None:
                same = found[len(kept)]
                kept.append((same, function))
            renamed[variable.name_hint] = same
        calls = _Calls(renamed)
        result = {v: calls.visit_expr(f) if isinstance(f, relax.Function) else f for v, f in functions.items()}
        return ir.IRModule({**result, **dict(kept)}, attrs=module.attrs)

    return transform.module_pass(rewrite, opt_level=0, name="OrderedShapeFunctions")


def is_shape_function(variable: ir.GlobalVar, function: Any) -> bool:
    return isinstance(function, tirx.PrimFunc) and variable.name_hint.startswith(NAME)


def number(variable: ir.GlobalVar) -> int:
    return int(variable.name_hint.removeprefix(NAME) or 0)


def sorted_stores(function: Any) -> Any:
    """Each store reads sizes that were there before, so any order will do: that of their places."""
    if not isinstance(function.body, tirx.SeqStmt):
        return function
    stores = sorted(function.body, key=lambda store: int(store.indices[0]))
    return function.with_body(tirx.SeqStmt(stores))


@mutator
class _Calls(PyExprMutator):  # type: ignore[misc]
    def __init__(self, renamed: dict[str, ir.GlobalVar]) -> None:
        super().__init__()
        self.renamed = renamed

    def visit_global_var_(self, variable: Any) -> Any:
        return self.renamed.get(variable.name_hint, variable)
