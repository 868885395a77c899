"""Gates, activations and row lookups on a GPU: a thread for each element. Axes: M rows, H features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from builder.lowering.schedules.gpu import block as b
from builder.lowering.schedules.gpu.block import Arg, Buffer, Device, Expr
from builder.lowering.schedules.gpu.weights import values, weight_of
from builder.ops.norms import ERFC, ERFC_P, TANH_GELU


def silu_mul(fields: Mapping[str, Any], device: Device) -> tirx.PrimFunc:
    """gate / (1 + exp(-gate)) * up; the gates are the first half of each row."""
    return gated(fields["width"], silu, device)


def gelu_mul(fields: Mapping[str, Any], device: Device) -> tirx.PrimFunc:
    """gelu(gate) * up, gelu in its tanh form."""
    return gated(fields["width"], tanh_gelu, device)


def gated(width: int, activated: Callable[[Expr], Expr], device: Device) -> tirx.PrimFunc:
    rows = b.size("rows")

    def body(gate_up: Buffer, y: Buffer) -> None:
        def one(index: Expr) -> None:
            at = T.Bind(b.div(index, width) * (2 * width) + b.mod(index, width))
            b.store(y, index, activated(T.Bind(b.load(gate_up, at))) * b.load(gate_up, at + width))

        b.each(device, rows * width, one)

    return b.kernel([Arg("gate_up", (rows, 2 * width)), Arg("y", (rows, width))], body)


def gelu(fields: Mapping[str, Any], device: Device) -> tirx.PrimFunc:
    """x * Phi(x), or its tanh form."""
    return mapped(fields["width"], {"gelu": exact_gelu, "gelu_tanh": tanh_gelu}[fields["kind"]], device)


def scaled(fields: Mapping[str, Any], device: Device) -> tirx.PrimFunc:
    """x * factor."""
    return mapped(fields["width"], lambda x: x * b.number(float(fields["factor"])), device)


def soft_cap(fields: Mapping[str, Any], device: Device) -> tirx.PrimFunc:
    """cap * tanh(x / cap)."""
    cap = float(fields["cap"])
    return mapped(fields["width"], lambda x: b.tanh(x * b.number(1.0 / cap)) * b.number(cap), device)


def mapped(width: int, value: Callable[[Expr], Expr], device: Device) -> tirx.PrimFunc:
    """y = value(x), element by element."""
    rows = b.size("rows")

    def body(x: Buffer, y: Buffer) -> None:
        b.each(device, rows * width, lambda index: b.store(y, index, value(T.Bind(b.load(x, index)))))

    return b.kernel([Arg("x", (rows, width)), Arg("y", (rows, width))], body)


def add(fields: Mapping[str, Any], device: Device) -> tirx.PrimFunc:
    """x (+ residual) (+ bias)."""
    width, rows = fields["width"], b.size("rows")
    residual = [Arg("residual", (rows, width))] if fields["residual"] else []
    bias = [Arg("bias", (width,), fields["dtype"])] if fields["bias"] else []

    def body(x: Buffer, *rest: Buffer) -> None:
        def one(index: Expr) -> None:
            value = b.load(x, index)
            if bias:
                value = value + b.to_float32(b.load(rest[-2], b.mod(index, width)), fields["dtype"])
            b.store(rest[-1], index, value + b.load(rest[0], index) if residual else value)

        b.each(device, rows * width, one)

    return b.kernel([Arg("x", (rows, width)), *residual, *bias, Arg("y", (rows, width))], body)


def joined(fields: Mapping[str, Any], device: Device) -> tirx.PrimFunc:
    """Columns of each rank, one rank's rows after the other's -> rows of all columns."""
    ranks, width, parts, rows = fields["ranks"], fields["width"], b.size("parts"), b.size("rows")

    def body(x: Buffer, y: Buffer) -> None:
        def one(index: Expr) -> None:
            row, v = T.Bind(b.div(index, ranks * width)), T.Bind(b.mod(index, ranks * width))
            b.store(y, index, b.load(x, (b.div(v, width) * rows + row) * width + b.mod(v, width)))

        b.each(device, rows * (ranks * width), one)

    return b.kernel([Arg("x", (parts, width)), Arg("y", (rows, ranks * width))], body)


def exact_gelu(x: Expr) -> Expr:
    """max(x, 0) - |x| * erfc(|x| / sqrt(2)) / 2."""
    size = T.Bind(T.max(x, -x))
    t = T.Bind(b.number(1.0) / (b.number(1.0) + size * b.number(ERFC_P * 0.5**0.5)))
    series = b.horner(t, [0.5 * term for term in ERFC]) * t
    return T.max(x, b.number(0.0)) - size * series * tirx.exp2(x * x * b.number(-0.5 * b.LOG2_E))


def silu(x: Expr) -> Expr:
    return x / (b.number(1.0) + b.exp(-x))


def tanh_gelu(x: Expr) -> Expr:
    scale, cubic = TANH_GELU
    inner = x * b.number(-scale * math.log2(math.e)) * (b.number(1.0) + x * x * b.number(cubic))
    return x / (b.number(1.0) + tirx.exp2(inner))


def last_row(fields: Mapping[str, Any], device: Device) -> tirx.PrimFunc:
    width, rows = fields["width"], b.size("rows")

    def body(x: Buffer, y: Buffer) -> None:
        b.each(device, width, lambda index: b.store(y, index, b.load(x, (rows - 1) * width + index)))

    return b.kernel([Arg("x", (rows, width)), Arg("y", (1, width))], body)


def take_rows(fields: Mapping[str, Any], device: Device) -> tirx.PrimFunc:
    width, rows, taken = fields["width"], b.size("rows"), b.size("taken")

    def body(x: Buffer, which: Buffer, y: Buffer) -> None:
        def one(index: Expr) -> None:
            row = T.Bind(b.load(which, b.div(index, width)))
            b.store(y, index, b.load(x, row * width + b.mod(index, width)))

        b.each(device, taken * width, one)

    return b.kernel([Arg("x", (rows, width)), Arg("which", (taken,), "int32"), Arg("y", (taken, width))], body)


def embedding(fields: Mapping[str, Any], device: Device) -> tirx.PrimFunc:
    """Rows of a table, as float32: a thread for each unit. Ids are not checked here: the runtime does."""
    table, rows = weight_of(fields), b.size("rows")

    def body(ids: Buffer, *rest: Buffer) -> None:
        stored, y = rest[:-1], rest[-1]

        def one(index: Expr) -> None:
            row, u = T.Bind(b.div(index, table.units)), T.Bind(b.mod(index, table.units))
            place = T.Bind(b.load(ids, row))
            for e, value in enumerate(values(table, stored, place, u)):
                k, real = table.input_of(u, b.integer(e))
                at = T.Bind(row * table.k + k)
                b.guarded(real, lambda at=at, value=value: b.store(y, at, value))  # type: ignore[misc]

        b.each(device, rows * table.units, one)

    return b.kernel([Arg("ids", (rows,), "int32"), *table.args, Arg("y", (rows, table.k))], body)


def routes(fields: Mapping[str, Any], device: Device) -> tirx.PrimFunc:
    """The ``top`` largest logits of each row, best first, then their shares: a thread for each row."""
    experts, top, rows = fields["experts"], fields["top"], b.size("rows")

    def body(logits: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            best, total = b.private(top), b.private(1)
            for slot in range(top):
                choose(logits, row, experts, best, slot)
            first = T.Bind(b.load(best, 0))
            b.store(total, 0, b.number(0.0))
            if fields["whole"]:
                for slot in range(top):
                    b.store(total, 0, b.load(total, 0) + b.exp(b.load(best, slot) - first))
            else:
                with b.loop(experts) as e:
                    b.store(total, 0, b.load(total, 0) + b.exp(b.load(logits, row * experts + e) - first))
            for slot in range(top):
                share = b.exp(b.load(best, slot) - first) / b.load(total, 0)
                b.store(y, row * (2 * top) + top + slot, share)

        def choose(logits: Buffer, row: Expr, experts: int, best: Buffer, slot: int) -> None:
            """The largest logit after those that were chosen: smaller, or equal and of a later expert."""
            found, at = b.private(1), b.private(1, "int32")
            b.store(found, 0, b.number(-3e38))
            b.store(at, 0, b.integer(0))
            with b.loop(experts) as e:
                value = T.Bind(b.load(logits, row * experts + e))
                fresh = value > b.load(found, 0)
                if slot:
                    before = T.Bind(b.load(y, row * (2 * top) + slot - 1))
                    last = b.load(best, slot - 1)
                    later = tirx.And(tirx.EQ(value, last), tirx.Cast("float32", e) > before)
                    fresh = tirx.And(fresh, tirx.Or(value < last, later))
                with b.when(fresh):
                    b.store(found, 0, value)
                    b.store(at, 0, e)
            b.store(best, slot, b.load(found, 0))
            b.store(y, row * (2 * top) + slot, tirx.Cast("float32", b.load(at, 0)))

        b.each(device, rows, one)

    return b.kernel([Arg("logits", (rows, experts)), Arg("y", (rows, 2 * top))], body)


GATES = {"silu_mul": silu, "gelu_mul": tanh_gelu}
