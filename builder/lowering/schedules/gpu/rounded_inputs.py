"""Inputs rounded to bytes on a GPU: scales of rows, codes, and products of codes.

What is computed stands in builder/ops/rounded_inputs.py. Axes: M rows, K inputs, W words of four codes.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu import linear
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.gpu.gemv import Inputs
from llm_build.lowering.schedules.gpu.weights import weight_of
from llm_build.lowering.schedules.ir import T
from llm_build.ops.byte_codes import PER_WORD, byte_of, byte_value
from llm_build.ops.rounded_inputs import RoundedLabel, RoundedLinearLabel, RowScaleLabel
from llm_build.quant.layout import BYTE_LARGEST


def row_scale(label: RowScaleLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """x (M, K) -> (M, 1): max |x| of each row over the largest code. A block for each row."""
    rows, k, threads = b.size("rows"), label.k, traits.threads

    def body(x: Buffer, y: Buffer) -> None:
        with b.launch(threads, rows) as (row, _, thread):
            room, most = b.shared(2 * threads), b.local(1)
            b.store(most, 0, b.f32(0.0))

            def larger(inside: Expr) -> None:
                value = T.Bind(b.load(x, row * k + inside))
                b.store(most, 0, T.max(b.load(most, 0), T.max(value, -value)))

            b.strided(thread, threads, k, larger)
            largest = b.block_reduce(b.load(most, 0), thread, threads, b.maximum, room)
            with b.when(tirx.EQ(thread, 0)):
                b.store(y, row, largest / b.f32(BYTE_LARGEST[label.activation]))

    return b.kernel([Arg("x", (rows, k)), Arg("y", (rows, 1))], body)


def rounded(label: RoundedLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """x (M, K), scales (M, 1) -> codes (M, W): a thread for each word."""
    rows, k, kind = b.size("rows"), label.k, label.activation
    words = -(-k // PER_WORD)

    def body(x: Buffer, scales: Buffer, codes: Buffer) -> None:
        def one(index: Expr) -> None:
            row, first = T.Bind(b.div(index, words)), T.Bind(b.mod(index, words) * PER_WORD)
            scale = T.Bind(b.load(scales, row))
            dead = T.Bind(tirx.EQ(scale, b.f32(0.0)))
            word = b.u32(0)
            for e in range(PER_WORD):
                value = tirx.if_then_else(first + e < k, b.load(x, row * k + first + e), b.f32(0.0))
                ratio = tirx.Select(dead, b.f32(0.0), value / tirx.Select(dead, b.f32(1.0), scale))
                word = word | (T.Bind(byte_of(T.Bind(ratio), kind)) << b.u32(8 * e))
            b.store(codes, index, word)

        b.for_each(traits, rows * words, one)

    args = [Arg("x", (rows, k)), Arg("scales", (rows, 1)), Arg("codes", (rows, words), "uint32")]
    return b.kernel(args, body)


@dataclass(frozen=True, slots=True)
class Codes(Inputs):
    """Codes of a ``kind``, (M, W), as inputs of a product; the scales of their rows are applied at its end."""

    kind: str

    @property
    def plain(self) -> bool:
        return False

    def at(self, row: Expr, k: Expr) -> Expr:
        word = b.load(self.x, row * -(-self.k // PER_WORD) + b.div(k, PER_WORD))
        shift = tirx.Cast("uint32", b.mod(k, PER_WORD) * 8)
        return byte_value((word >> shift) & b.u32(0xFF), self.kind)


def rounded_linear(label: RoundedLinearLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """The product of a "rounded_linear" (builder/ops/rounded_inputs.py)."""
    weight, rows = weight_of(label.weight), b.size("rows")
    inputs = [Arg("x", (rows, -(-weight.k // PER_WORD)), "uint32"), Arg("x_scale", (rows, 1))]
    args, many = linear.for_many_rows(label, traits, weight, [*inputs, *linear.args_of(label, weight, rows)])

    def body(codes: Buffer, scales: Buffer, *others: Buffer) -> None:
        x, sender = Codes(codes, weight.k, label.activation), linear.sender_of(label)
        linear.multiply_rows(traits, weight, rows, x, *linear.split(label, others, scales), sender, many)

    return b.kernel(args, body)
