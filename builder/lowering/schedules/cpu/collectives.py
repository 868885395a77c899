"""What stands around the collectives of several ranks, on the CPU. Axes: M rows, H features."""

from __future__ import annotations

from tvm import tirx

from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from llm_build.ops.collectives import AddLabel, JoinedLabel


def add(label: AddLabel, isa: Isa) -> tirx.PrimFunc:
    """x (+ residual) (+ bias)."""
    width, rows = label.width, v.size("rows")
    residual = [Arg("residual", (rows, width))] if label.residual else []
    bias = [Arg("bias", (width,), label.dtype)] if label.bias else []

    def body(x: Buffer, *rest: Buffer) -> None:
        def one(row: Expr) -> None:
            def strip(start: Expr, count: int) -> None:
                at = row * width + start
                value = v.load(x, at, count)
                if bias:
                    value = value + v.to_float32(v.load(rest[-2], start, count), label.dtype, count, isa)
                v.store(rest[-1], at, value + v.load(rest[0], at, count) if residual else value, count)

            v.for_vectors(width, isa.lanes, strip)

        v.for_rows(rows, width, one)

    return v.kernel([Arg("x", (rows, width)), *residual, *bias, Arg("y", (rows, width))], body)


def joined(label: JoinedLabel, isa: Isa) -> tirx.PrimFunc:
    """Columns of each rank, one rank's rows after the other's -> rows of all columns."""
    ranks, width, parts, rows = label.ranks, label.width, v.size("parts"), v.size("rows")

    def body(x: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            for rank in range(ranks):

                def move(start: Expr, count: int, rank: int = rank) -> None:
                    part = v.load(x, (rank * rows + row) * width + start, count)
                    v.store(y, row * (ranks * width) + rank * width + start, part, count)

                v.for_vectors(width, isa.lanes, move)

        v.for_rows(rows, ranks * width, one)

    return v.kernel([Arg("x", (parts, width)), Arg("y", (rows, ranks * width))], body)
