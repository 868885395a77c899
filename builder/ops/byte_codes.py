"""Integers and floats of one byte, four to a word, as expressions of a kernel (see quant/float8.py)."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from typing import Any

from tvm import tirx

from llm_build.quant.layout import BYTE_LARGEST, FLOAT8_MANTISSA_BITS, FLOAT8_SMALLEST

COMPUTE = "float32"
PER_WORD = 4


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
