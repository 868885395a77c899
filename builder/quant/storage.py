"""How stored dtypes look in numpy, which has no bfloat16: its bits, as uint16."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NUMPY_DTYPE: Mapping[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "float32": np.dtype(np.float32),
    "uint32": np.dtype(np.uint32),
}
LARGEST: Mapping[str, float] = {
    "float16": 65504.0,
    "bfloat16": float.fromhex("0x1.fep127"),
    "float32": float(np.finfo(np.float32).max),
}
HALF_IN_FLOAT32 = 2.0**-112  # times this, a float16 has its bits in a float32's places
SMALLEST_NORMAL: Mapping[str, float] = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126}


def narrow(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> as stored; half to even, what is too large becomes infinite, NaN stays NaN."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(NUMPY_DTYPE[dtype])
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    if nan.any():  # their bits must not be rounded to infinity
        rounded[nan] = (bits[nan] >> np.uint32(16)).astype(np.uint16) | np.uint16(0x40)
    return rounded


def widen(stored: np.ndarray, dtype: str) -> np.ndarray:
    """As stored -> float32, exactly."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


def widen_half(stored: np.ndarray, out: np.ndarray, times: float = 1.0) -> None:
    """float16 as any 16-bit dtype holds it -> float32 ``out`` * ``times``, a power of two, exactly; NaN and infinity
    come out as garbage.

    A float16 is a float32 with its exponent 112 lower, subnormals included, so three integer passes and one
    multiplication do what numpy's own cast does six times slower. Infinity is just a larger exponent to this.
    """
    bits = out.view(np.int32)
    np.copyto(bits, stored.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(0x8FFFE000 - (1 << 32)), out=bits)
    if times != HALF_IN_FLOAT32:
        np.multiply(out, np.float32(times / HALF_IN_FLOAT32), out=out)


def widen_scales(stored: np.ndarray, dtype: str) -> np.ndarray:
    """``widen`` for what is finite, as scales are, and faster."""
    if dtype != "float16":
        return widen(stored, dtype)
    out = np.empty(stored.shape, np.float32)
    widen_half(stored, out)
    return out


def scales(largest: np.ndarray, dtype: str) -> tuple[np.ndarray, int]:
    """float32 scales -> as stored, and how many were too large for the dtype: they become its largest finite value."""
    stored = narrow(largest, dtype)
    if largest.max(initial=0) < LARGEST[dtype]:
        return stored, 0
    infinite = np.isinf(widen(stored, dtype))
    stored[infinite] = narrow(np.array(LARGEST[dtype], np.float32), dtype)
    return stored, int(np.count_nonzero(infinite))
