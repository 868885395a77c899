"""Gates, activations and row lookups on the CPU. Axes: M rows, H features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from builder.lowering.schedules.cpu import vector as v
from builder.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from builder.lowering.schedules.cpu.weights import Grouped, Plain, weight_of
from builder.ops.norms import ERFC, ERFC_P, TANH_GELU

COSTLY = 8  # multiply-adds that an exponential or a division is worth


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


def gelu(fields: Mapping[str, Any], isa: Isa) -> tirx.PrimFunc:
    """x * Phi(x), or its tanh form x / (1 + exp(-2u))."""
    width, rows = fields["width"], v.size("rows")
    activated = {"gelu": exact_gelu, "gelu_tanh": tanh_gelu}[fields["kind"]]

    def body(x: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            def strip(start: Expr, count: int) -> None:
                at = row * width + start
                v.store(y, at, activated(T.Bind(v.load(x, at, count)), count), count)

            v.strips(width, isa.lanes, strip)

        v.for_rows(rows, width * COSTLY, one)

    return v.kernel([Arg("x", (rows, width)), Arg("y", (rows, width))], body)


def exact_gelu(x: Expr, lanes: int) -> Expr:
    """max(x, 0) - |x| * erfc(|x| / sqrt(2)) / 2."""
    one, zero = v.splat(1.0, lanes), v.splat(0.0, lanes)
    size = T.Bind(T.max(x, zero - x))
    t = T.Bind(one / (one + size * v.splat(ERFC_P * 0.5**0.5, lanes)))
    series = v.horner(t, [0.5 * term for term in ERFC], lanes)
    decay = v.exp2(x * x * v.splat(-0.5 * v.LOG2_E, lanes), lanes)
    return T.max(x, zero) - size * series * t * decay


def tanh_gelu(x: Expr, lanes: int) -> Expr:
    scale, cubic = TANH_GELU
    inner = x * v.splat(-scale * v.LOG2_E, lanes) * (v.splat(1.0, lanes) + x * x * v.splat(cubic, lanes))
    return x / (v.splat(1.0, lanes) + v.exp2(inner, lanes))


def add(fields: Mapping[str, Any], isa: Isa) -> tirx.PrimFunc:
    """x (+ residual) (+ bias)."""
    width, rows = fields["width"], v.size("rows")
    residual = [Arg("residual", (rows, width))] if fields["residual"] else []
    bias = [Arg("bias", (width,), fields["dtype"])] if fields["bias"] else []

    def body(x: Buffer, *rest: Buffer) -> None:
        def one(row: Expr) -> None:
            def strip(start: Expr, count: int) -> None:
                at = row * width + start
                value = v.load(x, at, count)
                if bias:
                    value = value + v.to_float32(v.load(rest[-2], start, count), fields["dtype"], count, isa)
                v.store(rest[-1], at, value + v.load(rest[0], at, count) if residual else value, count)

            v.strips(width, isa.lanes, strip)

        v.for_rows(rows, width, one)

    return v.kernel([Arg("x", (rows, width)), *residual, *bias, Arg("y", (rows, width))], body)


def joined(fields: Mapping[str, Any], isa: Isa) -> tirx.PrimFunc:
    """Columns of each rank, one rank's rows after the other's -> rows of all columns."""
    ranks, width, parts, rows = fields["ranks"], fields["width"], v.size("parts"), v.size("rows")

    def body(x: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            for rank in range(ranks):

                def move(start: Expr, count: int, rank: int = rank) -> None:
                    part = v.load(x, (rank * rows + row) * width + start, count)
                    v.store(y, row * (ranks * width) + rank * width + start, part, count)

                v.strips(width, isa.lanes, move)

        v.for_rows(rows, ranks * width, one)

    return v.kernel([Arg("x", (parts, width)), Arg("y", (rows, ranks * width))], body)


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
    if not isinstance(table, Plain | Grouped):
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
