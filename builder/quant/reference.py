"""Group quantization, slowly: the format description in numpy, one group at a time. ``pack`` must equal it bit for bit.

All arithmetic is IEEE float32 with round-half-to-even; M = 2^(bits-1) - 1 (7 for 4 bits). Integers:

    scale  = (max |w| of the group) / M, in float32, then rounded to the scheme's dtype
    stored = clip(rint(w / float32(scale) + M), 0, 2 M)            back: (stored - M) * float32(scale)

8-bit floats, with M = 448 (e4m3) or 57344 (e5m2), their largest finite value:

    scale  = as above
    stored = the code of the 8-bit float nearest to w / float32(scale), ties to the even code, at most M in magnitude
             back: float8(stored) * float32(scale), which is exact for a float16 or bfloat16 scale

The cases that a rule is needed for:

- **ties**: rint goes to the even neighbour, after the float32 addition of M; so 0.5 steps become stored M + 1 for odd M
  (every M here is odd) and -0.5 steps become M - 1.
- **zeros, negative zeros**: stored M, so both come back as +0.
- **an all-zero group, and one whose scale rounds to zero** (max |w| / M is at most half the dtype's smallest
  subnormal): scale +0, stored M everywhere.
- **subnormals**: kept, never flushed, in weights and in scales. A subnormal scale is coarse, so w / scale can pass M:
  it is clipped to 0 or 2 M.
- **huge values**: a scale that overflows the dtype saturates at its largest finite value; weights past it are clipped.
- **NaN and infinity** (refused before this, unless allowed): they take no part in the maximum; NaN is stored as M,
  infinities as 0 or 2 M, unless the scale is zero: then M.
- **float64 weights** are rounded to float32 first; what overflows there is an infinity.
- **a group that runs past the input width, or does not fill its words**: filled with zero weights, so stored M.

8-bit floats follow them with stored +0 where integers store M, and with +-M for 0 and 2 M; a negative zero, and what
rounds to it, keeps its sign. Their subnormals are used. No stored code is an infinity or NaN (as the saturating
conversion of the OCP specification, table 3, except that NaN becomes zero), so a kernel need not look for them.
"""

from __future__ import annotations

import numpy as np

from builder.quant.layout import FLOAT8_LARGEST, Scheme
from builder.quant.storage import HELD, LARGEST, narrow, widened

FLOAT8_BITS = {"e4m3": (4, 3, 7), "e5m2": (5, 2, 15)}  # of exponent and mantissa, and the exponent's bias


def quantize(weight: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """float32 (out, in) -> uint32 words (out, groups * words_per_group), scales (out, groups).

    Scales are in the scheme's dtype, as ``storage`` holds it. The layout is NK; KN is both, transposed.
    """
    outputs, inputs = weight.shape
    scheme = scheme.at(inputs)
    groups = -(-inputs // scheme.group_size)
    words = np.zeros((outputs, groups * scheme.words_per_group), np.uint32)
    scales = np.zeros((outputs, groups), HELD[scheme.dtype])
    for row in range(outputs):
        for group in range(groups):
            values = weight[row, group * scheme.group_size : (group + 1) * scheme.group_size].astype(np.float32)
            scale, stored = _quantize_group(values, scheme)
            scales[row, group] = scale
            first = group * scheme.words_per_group
            words[row, first : first + scheme.words_per_group] = _words(stored, scheme)
    return words, scales


def _quantize_group(values: np.ndarray, scheme: Scheme) -> tuple[np.generic, list[int]]:
    finite = [abs(value) for value in values if np.isfinite(value)]
    largest = max(finite, default=np.float32(0))
    scale = narrow(np.array([largest / np.float32(scheme.largest)], np.float32), scheme.dtype)
    step = widened(scale, scheme.dtype)[0]
    if np.isinf(step):
        step = np.float32(LARGEST[scheme.dtype])
        scale = narrow(np.array([step]), scheme.dtype)
    store = _stored if scheme.kind == "group" else _stored_float8
    return scale[0], [store(value, step, scheme) for value in values]


def _stored(value: np.float32, step: np.float32, scheme: Scheme) -> int:
    if step == 0 or np.isnan(value):
        return scheme.max_int
    with np.errstate(over="ignore", under="ignore"):
        level = np.rint(value / step + np.float32(scheme.max_int))
    return int(min(max(level, np.float32(0)), np.float32(2 * scheme.max_int)))


def _stored_float8(value: np.float32, step: np.float32, scheme: Scheme) -> int:
    if step == 0 or np.isnan(value):
        return 0
    with np.errstate(over="ignore", under="ignore"):
        ratio = value / step
    magnitudes = float8_values(scheme.kind)[:128].astype(np.float64)
    finite = magnitudes[magnitudes <= FLOAT8_LARGEST[scheme.kind]]
    distances = np.abs(finite - min(abs(float(ratio)), FLOAT8_LARGEST[scheme.kind]))
    nearest = np.flatnonzero(distances == distances.min())
    code = next((int(code) for code in nearest if code % 2 == 0), int(nearest[0]))
    return code | (0x80 if np.signbit(ratio) else 0)


def float8_values(kind: str) -> np.ndarray:
    """What each of the 256 codes stands for, in float32."""
    exponent_bits, mantissa_bits, bias = FLOAT8_BITS[kind]
    values = np.empty(256, np.float32)
    for code in range(128):
        exponent, mantissa = code >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
        if exponent == 0:
            value = mantissa * 2.0 ** (1 - bias - mantissa_bits)
        else:
            value = ((1 << mantissa_bits) + mantissa) * 2.0 ** (exponent - bias - mantissa_bits)
        special = code == 0x7F if kind == "e4m3" else exponent == (1 << exponent_bits) - 1
        infinite = kind == "e5m2" and mantissa == 0
        values[code] = value if not special else np.inf if infinite else np.nan
        values[code | 0x80] = -values[code]
    return values


def _words(stored: list[int], scheme: Scheme) -> list[int]:
    """Lowest bits first; slots without a weight hold the stored zero."""
    slots = stored + [scheme.zero] * (scheme.words_per_group * scheme.per_word - len(stored))
    words = []
    for first in range(0, len(slots), scheme.per_word):
        word = 0
        for place, value in enumerate(slots[first : first + scheme.per_word]):
            word |= value << (scheme.bits * place)
        words.append(word)
    return words


def dequantize(q_weight: np.ndarray, q_scale: np.ndarray, inputs: int, scheme: Scheme) -> np.ndarray:
    """Words and scales (NK) back to float32 (out, inputs), with one rounding, in float32."""
    scheme = scheme.at(inputs)
    outputs, groups = q_scale.shape
    mask = np.uint32((1 << scheme.bits) - 1)
    places = [(q_weight >> np.uint32(scheme.bits * place)) & mask for place in range(scheme.per_word)]
    stored = np.stack(places, axis=-1).reshape(outputs, groups, -1)[:, :, : scheme.group_size]
    if scheme.kind == "group":
        values = stored.astype(np.float32) - np.float32(scheme.max_int)
    else:
        values = float8_values(scheme.kind)[stored]
    weight = values * widened(q_scale, scheme.dtype)[:, :, None]
    return np.ascontiguousarray(weight.reshape(outputs, -1)[:, :inputs])
