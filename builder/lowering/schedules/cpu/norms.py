"""Norms on the CPU. Axes: M rows, H features."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from llm_build.lowering.schedules.ir import T
from llm_build.ops.norms import LayerNormLabel, QKNormLabel, RMSNormLabel


def rms_norm(label: RMSNormLabel, isa: Isa) -> tirx.PrimFunc:
    """x / sqrt(mean(x^2) + eps) * weight (+ residual)."""
    width, dtype, rows, added = label.width, label.dtype, v.size("rows"), label.residual

    def body(x: Buffer, *rest: Buffer) -> None:
        weight, y = rest[-2:]

        def one(row: Expr) -> None:
            start = T.Bind(row * width)
            scale = T.Bind(inverse_rms(x, start, width, label.eps, isa.lanes))
            _scaled(x, start, y, scale, weight, rest[0] if added else None, width, dtype, isa)

        v.for_rows(rows, width * 2, one)

    residual = [Arg("residual", (rows, width))] if added else []
    return v.kernel([Arg("x", (rows, width)), *residual, Arg("weight", (width,), dtype), Arg("y", (rows, width))], body)


def _scaled(
    x: Buffer, start: Expr, y: Buffer, scale: Expr, weight: Buffer, residual: Buffer | None, width: int, dtype: str,
    isa: Isa,
) -> None:  # fmt: skip
    """y = x * scale * weight (+ residual), over ``width`` features from ``start``."""

    def strip(inside: Expr, count: int) -> None:
        at = start + inside
        gain = v.to_float32(v.load(weight, inside, count), dtype, count, isa)
        value = v.load(x, at, count) * v.splat(scale, count) * gain
        v.store(y, at, value if residual is None else value + v.load(residual, at, count), count)

    v.for_vectors(width, isa.lanes, strip)


def inverse_rms(x: Buffer, start: Expr, width: int, eps: float, lanes: int) -> Expr:
    """1 / sqrt(mean of squares + eps) of ``width`` values from ``start``."""

    def square(at: Expr, count: int) -> Expr:
        value = T.Bind(v.load(x, start + at, count))
        return value * value

    return _inverse_root(_summed(square, width, lanes), width, eps)


def _inverse_root(squares: Expr, width: int, eps: float) -> Expr:
    mean = squares / tirx.const(float(width), "float32") + tirx.const(eps, "float32")
    return tirx.const(1.0, "float32") / T.call_llvm_pure_intrin("float32", "llvm.sqrt", mean)


def _summed(term: Callable[[Expr, int], Expr], width: int, lanes: int) -> Expr:
    """The sum of term(start, lanes) over 0..width, a scalar."""
    vector_sum, single_sum = v.scratch(lanes), v.scratch(1)
    v.store(vector_sum, 0, v.splat(0.0, lanes), lanes)
    v.store(single_sum, 0, tirx.const(0.0, "float32"))

    def add(at: Expr, count: int) -> None:
        into = vector_sum if count == lanes else single_sum
        v.store(into, 0, v.load(into, 0, count) + term(at, count), count)

    v.for_vectors(width, lanes, add)
    return v.lane_sum(v.load(vector_sum, 0, lanes), lanes) + v.load(single_sum, 0)


def layer_norm(label: LayerNormLabel, isa: Isa) -> tirx.PrimFunc:
    """(x - mean) / sqrt(variance + eps) * weight + bias; the variance is that of the centered values."""
    width, dtype, rows = label.width, label.dtype, v.size("rows")

    def body(x: Buffer, weight: Buffer, bias: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            start = T.Bind(row * width)
            total = _summed(lambda at, count: v.load(x, start + at, count), width, isa.lanes)
            mean = T.Bind(total / tirx.const(float(width), "float32"))

            def square(at: Expr, count: int) -> Expr:
                value = T.Bind(v.load(x, start + at, count) - v.splat(mean, count))
                return value * value

            scale = T.Bind(_inverse_root(_summed(square, width, isa.lanes), width, label.eps))

            def strip(inside: Expr, count: int) -> None:
                gain, shift = (
                    v.to_float32(v.load(stored, inside, count), dtype, count, isa) for stored in (weight, bias)
                )
                centered = v.load(x, start + inside, count) - v.splat(mean, count)
                v.store(y, start + inside, centered * v.splat(scale, count) * gain + shift, count)

            v.for_vectors(width, isa.lanes, strip)

        v.for_rows(rows, width * 3, one)

    whole, vector = (rows, width), (width,)
    return v.kernel([Arg("x", whole), Arg("weight", vector, dtype), Arg("bias", vector, dtype), Arg("y", whole)], body)


def qk_norm(label: QKNormLabel, isa: Isa) -> tirx.PrimFunc:
    """RMS norm of each run of q and of k features; v features are copied."""
    features, dtype, rows = label.features, label.dtype, v.size("rows")
    widths, runs = (label.q_width, label.k_width), (label.q_runs, label.k_runs)
    starts = (0, runs[0] * widths[0], runs[0] * widths[0] + runs[1] * widths[1])

    def body(x: Buffer, q_weight: Buffer, k_weight: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            for first, width, count, weight in zip(starts, widths, runs, (q_weight, k_weight), strict=False):
                with v.loop(count) as run:
                    start = T.Bind(row * features + first + run * width)
                    scale = T.Bind(inverse_rms(x, start, width, label.eps, isa.lanes))
                    _scaled(x, start, y, scale, weight, None, width, dtype, isa)

            def move(inside: Expr, count: int) -> None:
                at = row * features + starts[2] + inside
                v.store(y, at, v.load(x, at, count), count)

            v.for_vectors(features - starts[2], isa.lanes, move)

        v.for_rows(rows, features * 2, one)

    whole = (rows, features)
    weights = [Arg(name, (width,), dtype) for name, width in zip(("q_weight", "k_weight"), widths, strict=True)]
    return v.kernel([Arg("x", whole), *weights, Arg("y", whole)], body)
