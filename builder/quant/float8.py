"""float32 to 8-bit floats, fast. ``reference`` states the rules and has its own slow version.

E4M3 is 1 sign, 4 exponent (bias 7) and 3 mantissa bits, without infinities; E5M2 is 1, 5 (bias 15) and 2: OCP 8-bit
Floating Point Specification, rev. 1.0, section 5.
"""

from __future__ import annotations

import numpy as np

from builder.quant.layout import FLOAT8_LARGEST, FLOAT8_MANTISSA_BITS, FLOAT8_SMALLEST


def encode(values: np.ndarray, kind: str, out: np.ndarray, scratch: np.ndarray) -> None:
    """Round finite float32 ``values`` (overwritten) to bytes ``out`` of the same shape: half to even, saturating.

    A value is added to the power of two whose unit in the last place is the step of the value's binade, so the addition
    rounds it, and the sum's low bits count the steps: Knuth, The Art of Computer Programming 2, 4.2.2. The low bits of
    that power hold the steps of all binades below (an even number, so ties go where they should), and those of the sum
    the code.

    Args:
        scratch: uint32, three rows, each at least as large as ``values``.
    """
    mantissa, smallest = FLOAT8_MANTISSA_BITS[kind], FLOAT8_SMALLEST[kind]
    bits = values.view(np.uint32)
    signs, power, below = (row[: bits.size].reshape(bits.shape) for row in scratch)
    np.right_shift(bits, np.uint32(24), out=signs)
    np.bitwise_and(signs, np.uint32(0x80), out=signs)
    np.bitwise_and(bits, np.uint32(0x7FFFFFFF), out=bits)
    if values.max(initial=0) > FLOAT8_LARGEST[kind]:
        np.minimum(values, np.float32(FLOAT8_LARGEST[kind]), out=values)
    np.bitwise_and(bits, np.uint32(0x7F800000), out=power)  # 2^exponent of each value
    np.clip(power, np.uint32((smallest + 127) << 23), np.uint32(0x7F800000), out=power)  # faster than maximum
    np.right_shift(power, np.uint32(23 - mantissa), out=below)
    np.add(power, below, out=power)
    np.add(power, np.uint32(((23 - mantissa) << 23) - ((smallest + 127) << mantissa)), out=power)
    np.add(values, power.view(np.float32), out=values)
    np.bitwise_or(bits, signs, out=bits)
    np.copyto(out, bits, casting="unsafe")
