"""Kernels that compute element by element, on a GPU. Axes: M rows, H features."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.ir import T


def mapped(width: int, value: Callable[[Expr], Expr], traits: GpuTraits) -> tirx.PrimFunc:
    """y = value(x), element by element."""
    rows = b.size("rows")

    def body(x: Buffer, y: Buffer) -> None:
        b.for_each(traits, rows * width, lambda index: b.store(y, index, value(T.Bind(b.load(x, index)))))

    return b.kernel([Arg("x", (rows, width)), Arg("y", (rows, width))], body)
