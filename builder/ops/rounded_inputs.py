"""Inputs of layers, rounded to bytes: the operations before a product of packed weights (see quant/layout.py).

Axes: M rows (tokens), K inputs, W words of four codes, lowest byte first; what fills the last word is 0.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import te, tirx
from tvm.relax.frontend import nn

from builder.ops import emit as op
from builder.quant.layout import BYTE_LARGEST, FLOAT8_MANTISSA_BITS, FLOAT8_SMALLEST

COMPUTE = "float32"
PER_WORD = 4


def _row_scale(fields: Mapping[str, Any], x_MK: Any) -> Any:
    """max |x| of each row over the largest code."""
    axis = te.reduce_axis((0, fields["k"]), "k")
    largest_M = te.compute((x_MK.shape[0],), lambda m: te.max(tirx.abs(x_MK[m, axis]), axis=axis), "largest")
    most = tirx.const(BYTE_LARGEST[fields["activation"]], COMPUTE)
    return te.compute((x_MK.shape[0], 1), lambda m, _: largest_M[m] / most, "row_scale")


def _rounded(fields: Mapping[str, Any], x_MK: Any, scale_M1: Any) -> Any:
    """The codes of x / scale, half to even, none beyond the largest; of a row whose scale is 0: zeros."""
    inputs, zero, one = fields["k"], tirx.const(0.0, COMPUTE), tirx.const(1.0, COMPUTE)

    def code(m: Any, k: Any) -> Any:
        scale = scale_M1[m, 0]
        dead = tirx.EQ(scale, zero)
        ratio = tirx.Select(dead, zero, x_MK[m, k] / tirx.Select(dead, one, scale))
        return byte_of(ratio, fields["activation"])

    code_MK = te.compute(x_MK.shape, code, "code")

    def word(m: Any, w: Any) -> Any:
        value = tirx.const(0, "uint32")
        for place in range(PER_WORD):
            k = w * PER_WORD + place
            byte = tirx.if_then_else(k < inputs, code_MK[m, k], tirx.const(0, "uint32"))
            value = tirx.bitwise_or(value, tirx.shift_left(byte, tirx.const(8 * place, "uint32")))
        return value

    return te.compute((x_MK.shape[0], -(-inputs // PER_WORD)), word, "rounded")


def byte_of(ratio: Any, kind: str, lanes: int = 1) -> Any:
    """The code (uint32, one byte) of a float32, or of each lane of a vector. Floats as in quant/float8.py."""
    most = tirx.const(BYTE_LARGEST[kind], COMPUTE)
    signed, unsigned, real = (f"{name}x{lanes}" if lanes > 1 else name for name in ("int32", "uint32", COMPUTE))

    def const(value: int) -> Any:
        return tirx.const(value, "uint32")

    if kind == "int8":
        whole = tirx.Cast(signed, tirx.nearbyint(tirx.max(tirx.min(ratio, most), -most)))
        return tirx.bitwise_and(tirx.reinterpret(unsigned, whole), const(0xFF))
    mantissa, smallest = FLOAT8_MANTISSA_BITS[kind], FLOAT8_SMALLEST[kind]
    sign = tirx.bitwise_and(tirx.shift_right(tirx.reinterpret(unsigned, ratio), const(24)), const(0x80))
    size = tirx.min(tirx.abs(ratio), most)
    binade = tirx.bitwise_and(tirx.reinterpret(unsigned, size), const(0x7F800000))
    power = tirx.max(binade, const((smallest + 127) << 23)) + const((23 - mantissa) << 23)
    steps = tirx.reinterpret(unsigned, size + tirx.reinterpret(real, power)) - power
    below = tirx.shift_right(power, const(23 - mantissa)) - const((smallest + 127 + 23 - mantissa) << mantissa)
    return tirx.bitwise_or(steps + below, sign)


def byte_value(code: Any, kind: str, lanes: int = 1) -> Any:
    """A code (uint32, one byte), or a vector of them, as float32."""
    if kind != "int8":
        return float8(code, kind, lanes)
    return tirx.Cast(f"{COMPUTE}x{lanes}" if lanes > 1 else COMPUTE, int8(code, lanes))


def int8(code: Any, lanes: int = 1) -> Any:
    """A two's complement byte (uint32) as int32."""
    top = tirx.shift_left(code, tirx.const(24, "uint32"))
    return tirx.shift_right(tirx.reinterpret(f"int32x{lanes}" if lanes > 1 else "int32", top), tirx.const(24, "int32"))


def float8(code: Any, kind: str, lanes: int = 1) -> Any:
    """An 8-bit float (uint32) as float32. No subnormal number is computed with: a GPU may take those for zero."""
    mantissa, smallest = FLOAT8_MANTISSA_BITS[kind], FLOAT8_SMALLEST[kind]
    real = f"{COMPUTE}x{lanes}" if lanes > 1 else COMPUTE

    def const(value: int) -> Any:
        return tirx.const(value, "uint32")

    magnitude = tirx.bitwise_and(code, const(0x7F))
    normal = tirx.shift_left(magnitude, const(23 - mantissa)) + const((smallest - 1 + 127) << 23)
    steps = tirx.Cast(real, magnitude) * tirx.const(2.0 ** (smallest - mantissa), COMPUTE)
    value = tirx.Select(magnitude < const(1 << mantissa), steps, tirx.reinterpret(real, normal))
    return tirx.Select(code < const(0x80), value, -value)


def code_at(words_MW: Any, m: Any, k: Any) -> Any:
    """Code (m, k), in the low byte of a uint32."""
    shift = tirx.Cast("uint32", k % PER_WORD * 8)
    return tirx.bitwise_and(tirx.shift_right(words_MW[m, k // PER_WORD], shift), tirx.const(0xFF, "uint32"))


def rounded(x_MK: nn.Tensor, inputs: int, activation: str, ranks: int = 1) -> list[nn.Tensor]:
    """x (M, K) float32 -> [codes (M, W) uint32, scales (M, 1) float32]. Of several ranks each has a part of the rows,
    and they agree on the scales."""
    fields = {"k": inputs, "activation": activation}
    scale_M1 = op.emit("row_scale", _row_scale, fields, [x_MK], [], (x_MK.shape[0], 1))
    scale_M1 = nn.op.ccl_allreduce(scale_M1, "max") if ranks > 1 else scale_M1
    shape = (x_MK.shape[0], -(-inputs // PER_WORD))
    return [op.emit("rounded", _rounded, fields, [x_MK, scale_M1], [], shape, "uint32"), scale_M1]
