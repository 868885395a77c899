"""float32 to 8-bit floats, fast. ``reference`` states the rules and has its own slow version.

E4M3 is 1 sign, 4 exponent (bias 7) and 3 mantissa bits, without infinities; E5M2 is 1, 5 (bias 15) and 2: OCP 8-bit
Floating Point Specification, rev. 1.0, section 5.
"""

from __future__ import annotations

import numpy as np

from llm_build.quant.layout import FLOAT8_LARGEST, FLOAT8_MANTISSA_BITS, FLOAT8_SMALLEST


def encode(values: np.ndarray, kind: str, signs: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
    """Round finite float32 magnitudes ``values`` (overwritten) to bytes: half to even, saturating.

    A value is added to the power of two whose unit in the last place is the step of the value's binade, so the addition
    rounds it, and the sum's low bits count the steps: Knuth, The Art of Computer Programming 2, 4.2.2. The low bits of
    that power hold the steps of all binades below (an even number, so ties go where they should), and those of the sum
    the code.

    Args:
        signs: uint8 of the same shape, 128 for what is negative and 0 elsewhere.
        out: uint8 of the same shape, written.
        scratch: uint32, two rows or more, each at least as large as ``values``.
    """
    mantissa, smallest = FLOAT8_MANTISSA_BITS[kind], FLOAT8_SMALLEST[kind]
    bits, largest = values.view(np.uint32), np.float32(FLOAT8_LARGEST[kind])
    power, below = (row[: bits.size].reshape(bits.shape) for row in scratch[:2])
    np.clip(values, np.float32(0), largest, out=values)  # four times as fast as minimum
    np.bitwise_and(bits, np.uint32(0x7F800000), out=power)  # 2^exponent of each value
    exponents = power.view(np.float32)
    np.clip(exponents, np.float32(2.0**smallest), largest, out=exponents)  # as floats: faster
    np.right_shift(power, np.uint32(23 - mantissa), out=below)
    np.add(power, below, out=power)
    np.add(power, np.uint32(((23 - mantissa) << 23) - ((smallest + 127) << mantissa)), out=power)
    np.add(values, power.view(np.float32), out=values)
    np.copyto(out, bits, casting="unsafe")
    np.bitwise_or(out, signs, out=out)
