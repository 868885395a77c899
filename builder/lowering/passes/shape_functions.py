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


def order_shape_functions() -> transform.Pass:
    """Comes after VMShapeLower."""

    def rewrite(module: ir.IRModule, _context: Any) -> ir.IRModule:
        functions = dict(module.functions_items())
        variables = sorted((v for v in functions if _is_shape_function(v, functions[v])), key=_number_of)
        distinct: list[tuple[ir.GlobalVar, Any]] = []
        renamed: dict[str, ir.GlobalVar] = {}
        for variable in variables:
            function = _sort_stores(functions.pop(variable))
            same = next((v for v, other in distinct if tvm_ffi.structural_equal(other, function)), None)
            if same is None:
                same = variables[len(distinct)]
                distinct.append((same, function))
            renamed[variable.name_hint] = same
        calls = _CallRenamer(renamed)
        result = {v: calls.visit_expr(f) if isinstance(f, relax.Function) else f for v, f in functions.items()}
        return ir.IRModule({**result, **dict(distinct)}, attrs=module.attrs)

    return transform.module_pass(rewrite, opt_level=0, name="OrderedShapeFunctions")


def _is_shape_function(variable: ir.GlobalVar, function: Any) -> bool:
    return isinstance(function, tirx.PrimFunc) and variable.name_hint.startswith(NAME)


def _number_of(variable: ir.GlobalVar) -> int:
    return int(variable.name_hint.removeprefix(NAME) or 0)


def _sort_stores(function: Any) -> Any:
    """Each store reads sizes that were there before, so any order will do: that of their places."""
    if not isinstance(function.body, tirx.SeqStmt):
        return function
    stores = sorted(function.body, key=lambda store: int(store.indices[0]))
    return function.with_body(tirx.SeqStmt(stores))


@mutator
class _CallRenamer(PyExprMutator):  # type: ignore[misc]
    def __init__(self, renamed: dict[str, ir.GlobalVar]) -> None:
        super().__init__()
        self.renamed = renamed

    def visit_global_var_(self, variable: Any) -> Any:
        return self.renamed.get(variable.name_hint, variable)
