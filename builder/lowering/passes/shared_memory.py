"""Declare the memory that a block shares outside of all conditions and loops of its kernel.

OpenCL C (6.5.2 in version 1.2) and Metal allow it nowhere else.
"""

from __future__ import annotations

from typing import Any

from tvm import ir, tirx, transform

_Stmt = Any


def hoist_shared_memory() -> transform.Pass:
    """For device functions, whose launch is a nest of thread extents."""

    def rewrite(module: ir.IRModule, _context: Any) -> ir.IRModule:
        functions = {variable: _hoist(function) for variable, function in module.functions_items()}
        return ir.IRModule(functions, attrs=module.attrs)

    return transform.module_pass(rewrite, opt_level=0, name="HoistSharedMemory")


def _hoist(function: Any) -> Any:
    body, left = _split_declarations(function.body)
    assert not left, "shared memory outside of a launch"
    return function.with_body(body)


def _split_declarations(stmt: _Stmt) -> tuple[_Stmt, list[_Stmt]]:
    """The statement without its declarations of shared memory, and these; a launch keeps its own, in front."""
    if isinstance(stmt, tirx.AllocBuffer):
        return (None, [stmt]) if stmt.buffer.scope() == "shared" else (stmt, [])
    if isinstance(stmt, tirx.SeqStmt):
        parts = [_split_declarations(part) for part in stmt.seq]
        return _sequence([part for part, _ in parts if part is not None]), [
            one for _, declarations in parts for one in declarations
        ]
    if isinstance(stmt, tirx.IfThenElse):
        then, declarations = _split_declarations(stmt.then_case)
        otherwise, others = _split_declarations(stmt.else_case) if stmt.else_case is not None else (None, [])
        return tirx.IfThenElse(stmt.condition, then, otherwise), declarations + others
    if isinstance(stmt, tirx.AttrStmt):
        body, declarations = _split_declarations(stmt.body)
        if stmt.attr_key == "thread_extent":
            body, declarations = _sequence([*declarations, body]), []
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, body), declarations
    if isinstance(stmt, tirx.For):
        body, declarations = _split_declarations(stmt.body)
        whole = (
            stmt.loop_var,
            stmt.min,
            stmt.extent,
            stmt.kind,
            body,
            stmt.thread_binding,
            stmt.annotations,
            stmt.step,
        )
        return tirx.For(*whole), declarations
    return stmt, []


def _sequence(parts: list[_Stmt]) -> _Stmt:
    return parts[0] if len(parts) == 1 else tirx.SeqStmt(parts)
