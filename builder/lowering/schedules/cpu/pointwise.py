"""Norms, gates and row lookups on the CPU. Axes: M rows, H features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from builder.lowering.schedules.cpu import vector as v
from builder.lowering.schedules.cpu.linear import Grouped, Plain, weight_of
from builder.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa

COSTLY = 8  # multiply-adds that an exponential or a division is worth


def rms_norm(fields: Mapping[str, Any], isa: Isa) -> tirx.PrimFunc:
    """x / sqrt(mean(x^2) + eps) * weight."""
    width, lanes, dtype, rows = fields["width"], isa.lanes, fields["dtype"], v.size("rows")

    def body(x: Buffer, weight: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            scale = T.Bind(inverse_rms(x, row * width, width, fields["eps"], lanes))

            def scaled(start: Expr, count: int) -> None:
                at = row * width + start
                gain = v.to_float32(v.load(weight, start, count), dtype, count, isa)
                v.store(y, at, v.load(x, at, count) * v.splat(scale, count) * gain, count)

            v.strips(width, lanes, scaled)

        v.for_rows(rows, width * 2, one)

    return v.kernel([Arg("x", (rows, width)), Arg("weight", (width,), dtype), Arg("y", (rows, width))], body)


def inverse_rms(x: Buffer, start: Expr, width: int, eps: float, lanes: int) -> Expr:
    """1 / sqrt(mean of squares + eps) of ``width`` values from ``start``."""
    vector_sum, single_sum = v.scratch(lanes), v.scratch(1)
    v.store(vector_sum, 0, v.splat(0.0, lanes), lanes)
    v.store(single_sum, 0, tirx.const(0.0, "float32"))

    def square(at: Expr, count: int) -> None:
        value = T.Bind(v.load(x, start + at, count))
        into = vector_sum if count == lanes else single_sum
        v.store(into, 0, v.load(into, 0, count) + value * value, count)

    v.strips(width, lanes, square)
    squares = v.total(v.load(vector_sum, 0, lanes), lanes) + v.load(single_sum, 0)
    mean = squares / tirx.const(float(width), "float32") + tirx.const(eps, "float32")
    root = T.call_llvm_pure_intrin("float32", "llvm.sqrt", mean)
    return tirx.const(1.0, "float32") / root


def silu_mul(fields: Mapping[str, Any], isa: Isa) -> tirx.PrimFunc:
    """gate / (1 + exp(-gate)) * up; the gates are the first half of each row."""
    width, rows = fields["width"], v.size("rows")

    def body(gate_up: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            def gated(start: Expr, count: int) -> None:
                at = row * (2 * width) + start
                gate, up = T.Bind(v.load(gate_up, at, count)), v.load(gate_up, at + width, count)
                decay = v.exp2(gate * v.splat(-v.LOG2_E, count), count)
                v.store(y, row * width + start, gate / (v.splat(1.0, count) + decay) * up, count)

            v.strips(width, isa.lanes, gated)

        v.for_rows(rows, width * COSTLY, one)

    return v.kernel([Arg("gate_up", (rows, 2 * width)), Arg("y", (rows, width))], body)


def last_row(fields: Mapping[str, Any], isa: Isa) -> tirx.PrimFunc:
    width, rows = fields["width"], v.size("rows")

    def body(x: Buffer, y: Buffer) -> None:
        copy_row(x, rows - 1, y, tirx.const(0, "int64"), width, isa)

    return v.kernel([Arg("x", (rows, width)), Arg("y", (1, width))], body)


def take_rows(fields: Mapping[str, Any], isa: Isa) -> tirx.PrimFunc:
    width, rows, taken = fields["width"], v.size("rows"), v.size("taken")

    def body(x: Buffer, which: Buffer, y: Buffer) -> None:
        with v.loop(taken) as row:
            copy_row(x, T.Bind(tirx.Cast("int64", v.load(which, row))), y, row, width, isa)

    return v.kernel([Arg("x", (rows, width)), Arg("which", (taken,), "int32"), Arg("y", (taken, width))], body)


def copy_row(x: Buffer, source: Expr, y: Buffer, target: Expr, width: int, isa: Isa) -> None:
    def move(start: Expr, count: int) -> None:
        v.store(y, target * width + start, v.load(x, source * width + start, count), count)

    v.strips(width, isa.lanes, move)


def embedding(fields: Mapping[str, Any], isa: Isa) -> tirx.PrimFunc | None:
    """Rows of a table, as float32. Ids are not checked here: the runtime does."""
    table, rows = weight_of(fields, isa), v.size("rows")
    if table is None:
        return None

    def body(ids: Buffer, *rest: Buffer) -> None:
        stored, y = rest[:-1], rest[-1]

        def one(row: Expr) -> None:
            place = T.Bind(tirx.Cast("int64", v.load(ids, row)))
            if isinstance(table, Plain):
                plain_row(table, stored, place, y, row)
            else:
                packed_row(table, stored, place, y, row)

        v.for_rows(rows, fields["k"] * 2, one)

    return v.kernel([Arg("ids", (rows,), "int32"), *table.args, Arg("y", (rows, fields["k"]))], body)


def plain_row(table: Plain, stored: tuple[Buffer, ...], place: Expr, y: Buffer, row: Expr) -> None:
    def convert(start: Expr, count: int) -> None:
        raw = v.load(stored[0], place * table.k + start, count)
        v.store(y, row * table.k + start, v.to_float32(raw, table.dtype, count, table.isa), count)

    v.strips(table.k, table.isa.lanes, convert)


def packed_row(table: Grouped, stored: tuple[Buffer, ...], place: Expr, y: Buffer, row: Expr) -> None:
    """One value at a time: an embedding reads one row per token."""
    with v.loop(table.groups) as group:
        raw = v.load(stored[1], place * table.groups + group)
        scale = T.Bind(v.to_float32(raw, table.dtype, 1, table.isa))
        with v.loop(table.group_size) as inside:
            k = T.Bind(group * table.group_size + inside)
            with v.when(k < table.k):
                at = place * table.words + group * table.group_words + tirx.floordiv(inside, table.per_word)
                shift = tirx.Cast("uint32", tirx.floormod(inside, table.per_word) * table.bits)
                value = (v.load(stored[0], at) >> shift) & tirx.const((1 << table.bits) - 1, "uint32")
                signed = tirx.Cast("float32", tirx.Cast("int32", value)) - tirx.const(float(table.max_int), "float32")
                v.store(y, row * table.k + k, signed * scale)
