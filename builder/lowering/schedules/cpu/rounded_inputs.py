"""Inputs rounded to bytes on the CPU: the scales of rows, their codes, and products of the codes.

Axes: M rows, K inputs, W words of four codes. What is computed stands in builder/ops/rounded_inputs.py.
"""

from __future__ import annotations

from tvm import tirx

from llm_build.lowering.choices import choose
from llm_build.lowering.schedules.cpu import integers, linear
from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.packed_weights import OUTPUTS_PER_DOT
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from llm_build.lowering.schedules.cpu.weights import weight_of
from llm_build.lowering.schedules.ir import T
from llm_build.ops.byte_codes import PER_WORD, byte_of, byte_value
from llm_build.ops.rounded_inputs import RoundedLabel, RoundedLinearLabel, RowScaleLabel
from llm_build.quant.layout import BYTE_LARGEST


def row_scale(label: RowScaleLabel, isa: Isa) -> tirx.PrimFunc:
    """x (M, K) -> (M, 1): max |x| of each row over the largest code."""
    rows, k, lanes = v.size("rows"), label.k, isa.lanes

    def body(x: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            most = v.scratch(lanes)
            v.store(most, 0, v.splat(0.0, lanes), lanes)

            def larger(start: Expr, count: int) -> None:
                value = v.load(x, row * k + start, count)
                size = T.call_llvm_pure_intrin(v.vector_type("float32", count), "llvm.fabs", value)
                v.store(most, 0, T.max(size, v.load(most, 0, count)), count)

            v.for_vectors(k, lanes, larger)
            largest = v.lane_max(v.load(most, 0, lanes), lanes)
            v.store(y, row, largest / tirx.const(BYTE_LARGEST[label.activation], "float32"))

        v.for_rows(rows, k, one)

    return v.kernel([Arg("x", (rows, k)), Arg("y", (rows, 1))], body)


def rounded(label: RoundedLabel, isa: Isa) -> tirx.PrimFunc:
    """x (M, K), scales (M, 1) -> codes (M, W), written a byte at a time."""
    rows, k, kind = v.size("rows"), label.k, label.activation
    width = -(-k // PER_WORD) * PER_WORD

    def body(x: Buffer, scales: Buffer, codes: Buffer) -> None:
        out = T.decl_buffer((rows * width,), "uint8", data=codes.data)

        def one(row: Expr) -> None:
            scale = T.Bind(v.load(scales, row))
            dead = scale == tirx.const(0.0, "float32")
            step = T.Bind(tirx.Select(dead, tirx.const(1.0, "float32"), scale))
            mask = T.Bind(tirx.Select(dead, tirx.const(0, "uint32"), tirx.const(0xFFFFFFFF, "uint32")))

            def convert(start: Expr, count: int) -> None:
                alive = v.bits(v.load(x, row * k + start, count), "uint32", count) & v.splat(mask, count)
                code = byte_of(T.Bind(v.bits(alive, "float32", count) / v.splat(step, count)), kind, count)
                v.store(out, row * width + start, v.cast(code, "uint8", count), count)

            v.for_vectors(k, isa.lanes, convert)
            for place in range(k, width):
                v.store(out, row * width + place, tirx.const(0, "uint8"))

        v.for_rows(rows, k * 4, one)

    return v.kernel([Arg("x", (rows, k)), Arg("scales", (rows, 1)), Arg("codes", (rows, width // 4), "uint32")], body)


def _widened(codes: Buffer, scales: Buffer, rows: Expr, k: int, kind: str, isa: Isa) -> Buffer:
    """Codes times the scales of their rows, as float32 (M, K): what a kernel for float32 inputs reads."""
    x, words = v.scratch(rows * k), -(-k // PER_WORD)
    each = T.decl_buffer((rows * words * PER_WORD,), "uint8", data=codes.data)

    def one(row: Expr) -> None:
        scale = T.Bind(v.load(scales, row))

        def convert(start: Expr, count: int) -> None:
            code = T.Bind(v.cast(v.load(each, row * words * PER_WORD + start, count), "uint32", count))
            value = byte_value(code, kind, count)
            v.store(x, row * k + start, value * v.splat(scale, count), count)

        v.for_vectors(k, isa.lanes, convert)

    v.for_rows(rows, k * 2, one)
    return x


def rounded_linear(label: RoundedLinearLabel, isa: Isa) -> tirx.PrimFunc | None:
    """The product of a "rounded_linear" (builder/ops/rounded_inputs.py): of the bytes as they are where integers.py has
    the instructions for it, else of float32 again."""
    weight = weight_of(label.weight, isa)
    if weight is None or weight.n < OUTPUTS_PER_DOT:
        choose("plain loops", "a weight that no kernel here reads, or too few outputs", outputs=label.weight.n)
        return None
    rows, words, lanes = v.size("rows"), -(-weight.k // PER_WORD), integers.lanes_of(label, isa)

    def body(codes: Buffer, scales: Buffer, *others: Buffer) -> None:
        y, epilogue, stored = linear.split(label, isa, others)
        if lanes:
            choose("integer products", "int8 inputs, and the CPU multiplies bytes by fours (VNNI)", lanes=lanes)
            product = integers.Product(weight.n, words, lanes, codes, scales, stored[0], stored[1], epilogue, y, rows)
            integers.multiply_codes(product)
            return
        choose("float32 products", "inputs that no integer instruction of this CPU takes (VNNI takes int8)")
        x = _widened(codes, scales, rows, weight.k, label.activation, isa)
        linear.multiply_rows(weight, stored, x, epilogue, y, rows)

    inputs = [Arg("codes", (rows, words), "uint32"), Arg("scales", (rows, 1))]
    return v.kernel([*inputs, *linear.args_of(label, weight, rows)], body)
