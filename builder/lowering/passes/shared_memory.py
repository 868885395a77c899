"""Declare the memory that a block shares outside of all conditions and loops of its kernel.

OpenCL C (6.5.2 in version 1.2) and Metal allow it nowhere else.
"""

from __future__ import annotations

from typing import Any

from tvm import ir, tirx, transform

Stmt = Any


def outside() -> transform.Pass:
    """For device functions, whose launch is a nest of thread extents."""

    def rewrite(module: ir.IRModule, _context: Any) -> ir.IRModule:
        functions = {variable: moved(function) for variable, function in module.functions_items()}
        return ir.IRModule(functions, attrs=module.attrs)

    return transform.module_pass(rewrite, opt_level=0, name="SharedMemoryOutside")


def moved(function: Any) -> Any:
    body, left = without(function.body)
    assert not left, "shared memory outside of a launch"
    return function.with_body(body)


def without(stmt: Stmt) -> tuple[Stmt, list[Stmt]]:
    """The statement without its declarations of shared memory, and these; a launch keeps its own, in front."""
    if isinstance(stmt, tirx.AllocBuffer):
        return (None, [stmt]) if stmt.buffer.scope() == "shared" else (stmt, [])
    if isinstance(stmt, tirx.SeqStmt):
        parts = [without(part) for part in stmt.seq]
        return sequence([part for part, _ in parts if part is not None]), [one for _, found in parts for one in found]
    if isinstance(stmt, tirx.IfThenElse):
        then, found = without(stmt.then_case)
        otherwise, more = without(stmt.else_case) if stmt.else_case is not None else (None, [])
        return tirx.IfThenElse(stmt.condition, then, otherwise), found + more
    if isinstance(stmt, tirx.AttrStmt):
        body, found = without(stmt.body)
        if stmt.attr_key == "thread_extent":
            body, found = sequence([*found, body]), []
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, body), found
    if isinstance(stmt, tirx.For):
        body, found = without(stmt.body)
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
        return tirx.For(*whole), found
    return stmt, []


def sequence(parts: list[Stmt]) -> Stmt:
    return parts[0] if len(parts) == 1 else tirx.SeqStmt(parts)
