"""What stands around the collectives of several ranks, on a GPU. Axes: M rows, H features."""

from __future__ import annotations

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.gpu.norms import inverse_root, summed
from llm_build.lowering.schedules.ir import T
from llm_build.ops.collectives import AddLabel, JoinedLabel, QKMeansLabel, QKScaledLabel


def add(label: AddLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """x (+ residual) (+ bias)."""
    width, rows = label.width, b.size("rows")
    residual = [Arg("residual", (rows, width))] if label.residual else []
    bias = [Arg("bias", (width,), label.dtype)] if label.bias else []

    def body(x: Buffer, *rest: Buffer) -> None:
        def one(index: Expr) -> None:
            value = b.load(x, index)
            if bias:
                value = value + b.to_float32(b.load(rest[-2], b.mod(index, width)), label.dtype)
            b.store(rest[-1], index, value + b.load(rest[0], index) if residual else value)

        b.for_each(traits, rows * width, one)

    return b.kernel([Arg("x", (rows, width)), *residual, *bias, Arg("y", (rows, width))], body)


def joined(label: JoinedLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """Columns of each rank, one rank's rows after the other's -> rows of all columns."""
    ranks, width, parts, rows = label.ranks, label.width, b.size("parts"), b.size("rows")

    def body(x: Buffer, y: Buffer) -> None:
        def one(index: Expr) -> None:
            row, v = T.Bind(b.div(index, ranks * width)), T.Bind(b.mod(index, ranks * width))
            b.store(y, index, b.load(x, (b.div(v, width) * rows + row) * width + b.mod(v, width)))

        b.for_each(traits, rows * (ranks * width), one)

    return b.kernel([Arg("x", (parts, width)), Arg("y", (rows, ranks * width))], body)


def qk_means(label: QKMeansLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """The means of squares of q and of k features: a block for each row."""
    features, rows, threads = label.features, b.size("rows"), traits.threads
    widths = (label.q_width, label.k_width)

    def body(x: Buffer, y: Buffer) -> None:
        with b.launch(threads, rows) as (row, _, thread):
            for part, width in enumerate(widths):
                start = T.Bind(row * features + part * widths[0])

                def square(h: Expr, start: Expr = start) -> Expr:
                    value = T.Bind(b.load(x, start + h))
                    return value * value

                mean = T.Bind(summed(square, width, traits, thread) / b.f32(float(width)))
                with b.when(thread < 1):
                    b.store(y, row * 2 + part, mean)

    return b.kernel([Arg("x", (rows, features)), Arg("y", (rows, 2))], body)


def qk_scaled(label: QKScaledLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """q and k features over the roots of the ranks' average means, times their weights; v features are copied."""
    features, dtype, rows = label.features, label.dtype, b.size("rows")
    widths = (label.q_width, label.k_width)

    def body(x: Buffer, means: Buffer, q_weight: Buffer, k_weight: Buffer, y: Buffer) -> None:
        def one(index: Expr) -> None:
            row, f = T.Bind(b.div(index, features)), T.Bind(b.mod(index, features))

            def scaled(part: int, weight: Buffer, at: Expr) -> None:
                scale = inverse_root(b.load(means, row * 2 + part), label.ranks, label.eps)
                b.store(y, index, b.load(x, index) * scale * b.to_float32(b.load(weight, at), dtype))

            def not_q() -> None:
                b.if_else(
                    f < sum(widths),
                    lambda: scaled(1, k_weight, f - widths[0]),
                    lambda: b.store(y, index, b.load(x, index)),
                )

            b.if_else(f < widths[0], lambda: scaled(0, q_weight, f), not_q)

        b.for_each(traits, rows * features, one)

    whole = (rows, features)
    weights = [Arg(name, (width,), dtype) for name, width in zip(("q_weight", "k_weight"), widths, strict=True)]
    return b.kernel([Arg("x", whole), Arg("means", (rows, 2)), *weights, Arg("y", whole)], body)
