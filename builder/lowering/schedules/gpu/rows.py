"""Some of the rows of a tensor on a GPU: a thread for each element. Axes: M rows, H features."""

from __future__ import annotations

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.ir import T
from llm_build.ops.rows import LastRowLabel, TakeRowsLabel


def last_row(label: LastRowLabel, traits: GpuTraits) -> tirx.PrimFunc:
    width, rows = label.width, b.size("rows")

    def body(x: Buffer, y: Buffer) -> None:
        b.for_each(traits, width, lambda index: b.store(y, index, b.load(x, (rows - 1) * width + index)))

    return b.kernel([Arg("x", (rows, width)), Arg("y", (1, width))], body)


def take_rows(label: TakeRowsLabel, traits: GpuTraits) -> tirx.PrimFunc:
    width, rows, taken = label.width, b.size("rows"), b.size("taken")

    def body(x: Buffer, which: Buffer, y: Buffer) -> None:
        def one(index: Expr) -> None:
            row = T.Bind(b.load(which, b.div(index, width)))
            b.store(y, index, b.load(x, row * width + b.mod(index, width)))

        b.for_each(traits, taken * width, one)

    return b.kernel([Arg("x", (rows, width)), Arg("which", (taken,), "int32"), Arg("y", (taken, width))], body)
