"""Rows of a table for ids on the CPU. Axes: M rows, K features."""

from __future__ import annotations

from tvm import tirx

from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.packed_weights import Grouped
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from llm_build.lowering.schedules.cpu.weights import Plain, weight_of
from llm_build.lowering.schedules.ir import T
from llm_build.ops.embedding import EmbeddingLabel


def embedding(label: EmbeddingLabel, isa: Isa) -> tirx.PrimFunc | None:
    """Rows of a table, as float32. Ids are not checked here: the runtime does."""
    table, rows = weight_of(label.weight, isa), v.size("rows")
    if not isinstance(table, Plain | Grouped):
        return None

    def body(ids: Buffer, *rest: Buffer) -> None:
        stored, y = rest[:-1], rest[-1]

        def one(row: Expr) -> None:
            place = T.Bind(tirx.Cast("int64", v.load(ids, row)))
            if isinstance(table, Plain):
                _plain_row(table, stored, place, y, row)
            else:
                _packed_row(table, stored, place, y, row)

        v.for_rows(rows, label.weight.k * 2, one)

    return v.kernel([Arg("ids", (rows,), "int32"), *table.args, Arg("y", (rows, label.weight.k))], body)


def _plain_row(table: Plain, stored: tuple[Buffer, ...], place: Expr, y: Buffer, row: Expr) -> None:
    def convert(start: Expr, count: int) -> None:
        raw = v.load(stored[0], place * table.k + start, count)
        v.store(y, row * table.k + start, v.to_float32(raw, table.dtype, count, table.isa), count)

    v.for_vectors(table.k, table.isa.lanes, convert)


def _packed_row(table: Grouped, stored: tuple[Buffer, ...], place: Expr, y: Buffer, row: Expr) -> None:
    """One value at a time: an embedding reads one row per token."""
    with v.loop(table.groups) as group:
        raw = v.load(stored[1], table.scale_at(place, group))
        scale = T.Bind(v.to_float32(raw, table.dtype, 1, table.isa))
        zero = T.Bind(table.zeros_of_rows(stored[2], place, group, 1)) if table.zero_point else None
        with v.loop(table.group_words) as inside:
            word = T.Bind(group * table.group_words + inside)
            bits = T.Bind(v.load(stored[0], place * table.words + word))
            for e in range(table.per_word):
                k, real = table.input_of(word, e)
                with v.when(real):
                    v.store(y, row * table.k + k, table.weight(bits, e, scale, zero, 1))
