"""float32 to 8-bit floats, fast. ``reference`` states the rules and has its own slow version.

E4M3 is 1 sign, 4 exponent (bias 7) and 3 mantissa bits, without infinities; E5M2 is 1, 5 (bias 15) and 2: OCP 8-bit
Floating Point Specification, rev. 1.0, section 5.
"""

from __future__ import annotations

import numpy as np

from builder.quant.layout import FLOAT8_LARGEST, FLOAT8_MANTISSA_BITS, FLOAT8_SMALLEST


def encode(values: np.ndarray, kind: str, out: np.ndarray) -> None:
    """Round finite float32 ``values`` (overwritten) to bytes ``out`` of the same shape: half to even, saturating.

    A value is added to the power of two whose unit in the last place is the step of the value's binade, so the addition
    rounds it, and the sum's low bits count the steps: Knuth, The Art of Computer Programming 2, 4.2.2.
    """
    mantissa, smallest = FLOAT8_MANTISSA_BITS[kind], FLOAT8_SMALLEST[kind]
    bits = values.view(np.uint32)
    signs = np.right_shift(bits, np.uint32(24))
    np.bitwise_and(signs, np.uint32(0x80), out=signs)
    np.bitwise_and(bits, np.uint32(0x7FFFFFFF), out=bits)
    np.minimum(values, np.float32(FLOAT8_LARGEST[kind]), out=values)
    power = np.bitwise_and(bits, np.uint32(0x7F800000))  # 2^exponent of each value
    np.maximum(power, np.uint32((smallest + 127) << 23), out=power)
    np.add(power, np.uint32((23 - mantissa) << 23), out=power)
    np.add(values, power.view(np.float32), out=values)
    np.subtract(bits, power, out=bits)  # steps: up to 2^(mantissa + 1), a rounded-up binade included
    np.right_shift(power, np.uint32(23 - mantissa), out=power)
    np.subtract(power, np.uint32((smallest + 127 + 23 - mantissa) << mantissa), out=power)
    np.add(bits, power, out=bits)  # the code: steps of the binade, and those of all binades below
    np.bitwise_or(bits, signs, out=bits)
    np.copyto(out, bits, casting="unsafe")
