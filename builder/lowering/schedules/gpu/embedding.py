"""Rows of a table for ids on a GPU. Axes: M rows, K features."""

from __future__ import annotations

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.gpu.weights import values, weight_of
from llm_build.lowering.schedules.ir import T
from llm_build.ops.embedding import EmbeddingLabel


def embedding(label: EmbeddingLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """Rows of a table, as float32: a thread for each unit. Ids are not checked here: the runtime does."""
    table, rows = weight_of(label.weight), b.size("rows")

    def body(ids: Buffer, *rest: Buffer) -> None:
        stored, y = rest[:-1], rest[-1]

        def one(index: Expr) -> None:
            row, u = T.Bind(b.div(index, table.units)), T.Bind(b.mod(index, table.units))
            place = T.Bind(b.load(ids, row))
            for e, value in enumerate(values(table, stored, place, u)):
                k, real = table.input_of(u, b.i32(e))
                at = T.Bind(row * table.k + k)
                b.guarded(real, lambda at=at, value=value: b.store(y, at, value))  # type: ignore[misc]

        b.for_each(traits, rows * table.units, one)

    return b.kernel([Arg("ids", (rows,), "int32"), *table.args, Arg("y", (rows, table.k))], body)
