"""Group quantization, slowly: the format description in numpy, one group at a time. ``pack`` must equal it bit for bit.

All arithmetic is IEEE float32 with round-half-to-even; M = 2^(bits-1) - 1 (7 for 4 bits). Integers:

    scale  = (max |w| of the group) / M, in float32, then rounded to the scheme's dtype
    stored = clip(rint(w / float32(scale) + M), 0, 2 M)            back: (stored - M) * float32(scale)

Integers with zero points, T = 2^bits - 1, low and high the smallest and largest weight of the group, or 0 if that is
beyond them (so the range includes 0):

    scale  = (high - low) / T, in float32, then rounded to the scheme's dtype
    zero   = clip(rint(-low / float32(scale)), 0, T)
    stored = clip(rint(w / float32(scale) + zero), 0, T)           back: (stored - zero) * float32(scale)

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

With zero points the same holds with the group's zero point where M stands, T for 2 M, and 0 as the zero point of a
group whose scale is zero; what fills the end of a word is stored as 0.

Integers of kind "int8" are stored without an offset, as two's complement bytes: clip(rint(w / float32(scale)), -127,
127), back: stored * float32(scale); M is 127, and a zero is stored as 0. With ``scale_per`` "tensor" the group is the
whole matrix.

8-bit floats follow them with stored +0 where integers store M, and with +-M for 0 and 2 M; a negative zero, and what
rounds to it, keeps its sign. Their subnormals are used. No stored code is an infinity or NaN (as the saturating
conversion of the OCP specification, table 3, except that NaN becomes zero), so a kernel need not look for them.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from llm_build.quant.layout import BYTE_LARGEST, FLOAT8_LARGEST, Scheme
from llm_build.quant.storage import LARGEST, NUMPY_DTYPE, narrow, widen

_FLOAT8_BITS = {"e4m3": (4, 3, 7), "e5m2": (5, 2, 15)}  # of exponent and mantissa, and the exponent's bias


def quantize(weight: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, ...]:
    """float32 (out, in) -> uint32 words (out, groups * words_per_group), scales (out, groups), and with zero points
    their uint32 words (out, ceil(groups / per_word)).

    Scales are in the scheme's scale_dtype, as ``storage`` holds it; one of a tensor is (1, 1). The layout is NK; KN is
    both, transposed.
    """
    outputs, inputs = weight.shape
    scheme = scheme.for_width(inputs)
    groups = -(-inputs // scheme.group_size)
    words = np.zeros((outputs, groups * scheme.words_per_group), np.uint32)
    scales = np.zeros((outputs, groups), NUMPY_DTYPE[scheme.scale_dtype])
    largest = _largest(weight.astype(np.float32).ravel()) if scheme.scale_per == "tensor" else None
    zeros = np.zeros((outputs, groups), np.uint32)
    quantize_group = _quantize_asymmetric if scheme.zero_point else _quantize_group
    for row in range(outputs):
        for group in range(groups):
            values = weight[row, group * scheme.group_size : (group + 1) * scheme.group_size].astype(np.float32)
            scale, stored, zeros[row, group] = quantize_group(values, scheme, largest)
            scales[row, group] = scale
            first = group * scheme.words_per_group
            words[row, first : first + scheme.words_per_group] = _words(stored, scheme)
    if not scheme.zero_point:
        return words, scales if largest is None else scales[:1]
    return words, scales, np.array([_pack_row([int(zero) for zero in row], scheme) for row in zeros], np.uint32)


def _largest(values: np.ndarray) -> np.float32:
    return np.float32(np.abs(values[np.isfinite(values)]).max(initial=0))


def _quantize_group(
    values: np.ndarray, scheme: Scheme, largest: np.float32 | None
) -> tuple[np.generic, list[int], int]:
    """``largest``: of all that share the scale, if these are not all."""
    largest = _largest(values) if largest is None else largest
    scale, step = _scale(largest / np.float32(scheme.max_magnitude), scheme)
    if scheme.kind == "group":
        return scale, _stored(values, step, scheme), 0
    return scale, [_stored_byte(value, step, scheme.kind) for value in values], 0


def _quantize_asymmetric(values: np.ndarray, scheme: Scheme, _: np.float32 | None) -> tuple[np.generic, list[int], int]:
    finite, top = values[np.isfinite(values)], np.float32(scheme.max_level)
    low, high = finite.min(initial=0), finite.max(initial=0)
    with np.errstate(over="ignore"):
        scale, step = _scale((high - low) / top, scheme)
    if step == 0:
        return scale, [0] * scheme.group_size, 0
    with np.errstate(over="ignore", under="ignore"):
        zero = min(np.rint(-low / step), top)
        shifted = np.where(np.isnan(values), zero, np.rint(values / step + zero))
    stored = [int(level) for level in np.clip(shifted, 0, top)]
    return scale, stored + [int(zero)] * (scheme.group_size - len(stored)), int(zero)


def _scale(value: np.float32, scheme: Scheme) -> tuple[np.generic, np.float32]:
    """A scale as it is stored, and in float32."""
    scale = narrow(np.array([value], np.float32), scheme.scale_dtype)
    step = widen(scale, scheme.scale_dtype)[0]
    if np.isinf(step):
        step = np.float32(LARGEST[scheme.scale_dtype])
        scale = narrow(np.array([step]), scheme.dtype)
    return scale[0], step


def _stored(values: np.ndarray, step: np.float32, scheme: Scheme) -> list[int]:
    if step == 0:
        return [scheme.max_int] * len(values)
    with np.errstate(over="ignore", under="ignore"):
        levels = np.clip(np.rint(values / step + np.float32(scheme.max_int)), 0, 2 * scheme.max_int)
    return [int(level) for level in np.where(np.isnan(values), scheme.max_int, levels)]


def _stored_byte(value: np.float32, step: np.float32, kind: str) -> int:
    """The code of a value in units of ``step``: a two's complement byte, or an 8-bit float."""
    if step == 0 or np.isnan(value):
        return 0
    with np.errstate(over="ignore", under="ignore"):
        ratio = value / step
    if kind == "int8":
        return int(np.rint(min(max(ratio, np.float32(-127)), np.float32(127)))) & 0xFF
    magnitudes = float8_values(kind)[:128].astype(np.float64)
    finite = magnitudes[magnitudes <= FLOAT8_LARGEST[kind]]
    distances = np.abs(finite - min(abs(float(ratio)), FLOAT8_LARGEST[kind]))
    nearest = np.flatnonzero(distances == distances.min())
    code = next((int(code) for code in nearest if code % 2 == 0), int(nearest[0]))
    return code | (0x80 if np.signbit(ratio) else 0)


def byte_values(kind: str) -> np.ndarray:
    """What each of the 256 codes stands for, in float32."""
    if kind == "int8":
        return np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
    return float8_values(kind)


@cache
def float8_values(kind: str) -> np.ndarray:
    """What each of the 256 codes stands for, in float32; not to be written to."""
    exponent_bits, mantissa_bits, bias = _FLOAT8_BITS[kind]
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
    values.flags.writeable = False
    return values


def _words(stored: list[int], scheme: Scheme) -> list[int]:
    """Lowest bits first; slots without a weight hold the stored zero."""
    return _pack_row(stored + [scheme.zero_level] * (scheme.words_per_group * scheme.per_word - len(stored)), scheme)


def _pack_row(values: list[int], scheme: Scheme) -> list[int]:
    """Values -> words; the last one may be part empty."""
    words = []
    for first in range(0, len(values), scheme.per_word):
        word = 0
        for place, value in enumerate(values[first : first + scheme.per_word]):
            word |= value << (scheme.bits * place)
        words.append(word)
    return words


def dequantize(
    q_weight: np.ndarray, q_scale: np.ndarray, inputs: int, scheme: Scheme, q_zero: np.ndarray | None = None
) -> np.ndarray:
    """Words and scales (NK), and the words of zero points, back to float32 (out, inputs), with one rounding, in
    float32."""
    scheme = scheme.for_width(inputs)
    outputs, groups = len(q_weight), q_scale.shape[1]
    stored = _places(q_weight, scheme).reshape(outputs, groups, -1)[:, :, : scheme.group_size]
    if q_zero is not None:
        zeros = _places(q_zero, scheme)[:, :groups, None]
        values = stored.astype(np.float32) - zeros.astype(np.float32)
    elif scheme.kind == "group":
        values = stored.astype(np.float32) - np.float32(scheme.max_int)
    else:
        values = byte_values(scheme.kind)[stored]
    weight = values * widen(q_scale, scheme.scale_dtype)[:, :, None]
    return np.ascontiguousarray(weight.reshape(outputs, -1)[:, :inputs])


def _places(words: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The values of each row's words, in order: (out, words * per_word)."""
    mask = np.uint32((1 << scheme.bits) - 1)
    places = [(words >> np.uint32(scheme.bits * place)) & mask for place in range(scheme.per_word)]
    return np.stack(places, axis=-1).reshape(len(words), -1)


def rounded_input(x: np.ndarray, activation: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 inputs (rows, K) -> (their codes, uint8 (rows, K), float32 scales (rows, 1)).

    scale = max |x| of the row / M; the codes are those of a weight with that scale. What a layer computes of them:
    (sum of values * stored weights) * scale of the row * scale of the weight.
    """
    scales = np.abs(x).max(axis=1, keepdims=True) / np.float32(BYTE_LARGEST[activation])
    codes = np.empty(x.shape, np.uint8)
    for place, value in np.ndenumerate(x):
        codes[place] = _stored_byte(value, scales[place[0], 0], activation)
    return codes, scales
