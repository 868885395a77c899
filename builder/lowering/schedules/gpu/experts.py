"""Mixtures of experts on a GPU: routes, products of each pair of a token and an expert, and their sums."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.gpu.gemv import Inputs, Results, multiply_each_row
from llm_build.lowering.schedules.gpu.weights import weight_of
from llm_build.lowering.schedules.ir import T
from llm_build.ops.experts import ExpertLinearLabel, ExpertSumLabel, RoutesLabel


def expert_linear(label: ExpertLinearLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """The kernel of an "expert_linear" (builder/ops/experts.py): pairs of token and expert, one by one."""
    weight, top, outputs = weight_of(label.weight), label.top, label.outputs
    rows, tokens = b.size("rows"), b.size("tokens")
    pairs = rows * top if label.shared else rows

    def body(x: Buffer, routes: Buffer, *rest: Buffer) -> None:
        stored, y = rest[:-1], rest[-1]

        read = Inputs(x, weight.k)

        def row_of(pair: Expr) -> tuple[Inputs, Expr, Expr]:
            traits.wait()
            token = b.div(pair, top)
            number = b.load(routes, token * (2 * top) + b.mod(pair, top))
            return read, token if label.shared else pair, T.Bind(tirx.Cast("int32", number) * outputs)

        def epilogue(_pair: Expr, _n: Expr) -> Callable[..., Expr]:
            return lambda value: value

        multiply_each_row(traits, weight, stored, pairs, row_of, Results(y, outputs, epilogue))

    shape = (rows, 2 * top) if label.shared else (tokens, 2 * top)
    args = [Arg("x", (rows, weight.k)), Arg("routes", shape), *weight.args, Arg("y", (pairs, outputs))]
    return b.kernel(args, body)


def routes(label: RoutesLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """The ``top`` largest logits of each row, best first, then their shares: a thread for each row."""
    experts, top, rows = label.experts, label.top, b.size("rows")

    def body(logits: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            best, total = b.local(top), b.local(1)
            for slot in range(top):
                choose(logits, row, experts, best, slot)
            first = T.Bind(b.load(best, 0))
            b.store(total, 0, b.f32(0.0))
            if label.whole:
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
            found, at = b.local(1), b.local(1, "int32")
            b.store(found, 0, b.f32(-3e38))
            b.store(at, 0, b.i32(0))
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

        b.for_each(traits, rows, one)

    return b.kernel([Arg("logits", (rows, experts)), Arg("y", (rows, 2 * top))], body)


def expert_sum(label: ExpertSumLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """(residual +) what the experts of each token say, by their shares."""
    top, pairs, rows, width = label.top, b.size("pairs"), b.size("rows"), b.size("width")
    residual = [Arg("residual", (rows, width))] if label.residual else []

    def body(x: Buffer, shares: Buffer, *rest: Buffer) -> None:
        y = rest[-1]

        def one(index: Expr) -> None:
            row, h = T.Bind(b.div(index, width)), T.Bind(b.mod(index, width))
            value = b.load(rest[0], index) if residual else b.f32(0.0)
            for slot in range(top):
                part = b.load(x, (row * top + slot) * width + h)
                value = value + part * b.load(shares, row * (2 * top) + top + slot)
            b.store(y, index, value)

        b.for_each(traits, rows * width, one)

    args = [Arg("x", (pairs, width)), Arg("routes", (rows, 2 * top)), *residual]
    return b.kernel([*args, Arg("y", (rows, width))], body)
