"""Kernels that compute element by element, on the CPU. Axes: M rows, H features."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from llm_build.lowering.schedules.ir import T

COSTLY = 8  # multiply-adds that an exponential or a division is worth


def each(width: int, cost: int, value: Any, isa: Isa) -> tirx.PrimFunc:
    """y = value(x, lanes), element by element."""
    rows = v.size("rows")

    def body(x: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            def some(start: Expr, count: int) -> None:
                at = row * width + start
                v.store(y, at, value(T.Bind(v.load(x, at, count)), count), count)

            v.for_vectors(width, isa.lanes, some)

        v.for_rows(rows, width * cost, one)

    return v.kernel([Arg("x", (rows, width)), Arg("y", (rows, width))], body)
