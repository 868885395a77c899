"""Some of the rows of a tensor on the CPU. Axes: M rows, H features."""

from __future__ import annotations

from tvm import tirx

from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from llm_build.lowering.schedules.ir import T
from llm_build.ops.rows import LastRowLabel, TakeRowsLabel


def last_row(label: LastRowLabel, isa: Isa) -> tirx.PrimFunc:
    width, rows = label.width, v.size("rows")

    def body(x: Buffer, y: Buffer) -> None:
        _copy_row(x, rows - 1, y, tirx.const(0, "int64"), width, isa)

    return v.kernel([Arg("x", (rows, width)), Arg("y", (1, width))], body)


def take_rows(label: TakeRowsLabel, isa: Isa) -> tirx.PrimFunc:
    width, rows, taken = label.width, v.size("rows"), v.size("taken")

    def body(x: Buffer, which: Buffer, y: Buffer) -> None:
        with v.loop(taken) as row:
            _copy_row(x, T.Bind(tirx.Cast("int64", v.load(which, row))), y, row, width, isa)

    return v.kernel([Arg("x", (rows, width)), Arg("which", (taken,), "int32"), Arg("y", (taken, width))], body)


def _copy_row(x: Buffer, source: Expr, y: Buffer, target: Expr, width: int, isa: Isa) -> None:
    def move(start: Expr, count: int) -> None:
        v.store(y, target * width + start, v.load(x, source * width + start, count), count)

    v.for_vectors(width, isa.lanes, move)
