"""Group quantization, slowly: the format description in numpy, one group at a time. ``pack`` must equal it bit for bit.

All arithmetic is IEEE float32 with round-half-to-even; M = 2^(bits-1) - 1 (7 for 4 bits).

    scale  = (max |w| of the group) / M, in float32, then rounded to the scheme's dtype
    stored = clip(rint(w / float32(scale) + M), 0, 2 M)            back: (stored - M) * float32(scale)

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
"""

from __future__ import annotations

import numpy as np

from builder.quant.layout import Scheme


def quantize(weight: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """float32 (out, in) -> uint32 words (out, groups * words_per_group), scales (out, groups) in the scheme's dtype."""
    outputs, inputs = weight.shape
    groups = -(-inputs // scheme.group_size)
    words = np.zeros((outputs, groups * scheme.words_per_group), np.uint32)
    scales = np.zeros((outputs, groups), scheme.dtype)
    for row in range(outputs):
        for group in range(groups):
            values = weight[row, group * scheme.group_size : (group + 1) * scheme.group_size].astype(np.float32)
            scale, stored = _quantize_group(values, scheme)
            scales[row, group] = scale
            first = group * scheme.words_per_group
            words[row, first : first + scheme.words_per_group] = _words(stored, scheme)
    return words, scales


def _quantize_group(values: np.ndarray, scheme: Scheme) -> tuple[np.floating, list[int]]:
    middle = np.float32(scheme.max_int)
    finite = [abs(value) for value in values if np.isfinite(value)]
    largest = max(finite, default=np.float32(0))
    with np.errstate(over="ignore", under="ignore"):
        scale = (largest / middle).astype(scheme.dtype)
    if np.isinf(scale):
        scale = np.finfo(scheme.dtype).max
    return scale, [_stored(value, np.float32(scale), scheme) for value in values]


def _stored(value: np.float32, step: np.float32, scheme: Scheme) -> int:
    if step == 0 or np.isnan(value):
        return scheme.max_int
    with np.errstate(over="ignore", under="ignore"):
        level = np.rint(value / step + np.float32(scheme.max_int))
    return int(min(max(level, np.float32(0)), np.float32(2 * scheme.max_int)))


def _words(stored: list[int], scheme: Scheme) -> list[int]:
    """Lowest bits first; slots without a weight hold the stored zero."""
    slots = stored + [scheme.max_int] * (scheme.words_per_group * scheme.per_word - len(stored))
    words = []
    for first in range(0, len(slots), scheme.per_word):
        word = 0
        for place, value in enumerate(slots[first : first + scheme.per_word]):
            word |= value << (scheme.bits * place)
        words.append(word)
    return words


def dequantize(q_weight: np.ndarray, q_scale: np.ndarray, inputs: int, scheme: Scheme) -> np.ndarray:
    """Words and scales back to float32 (out, inputs): (stored - M) * float32(scale), one rounding, in float32."""
    outputs, groups = q_scale.shape
    mask = np.uint32((1 << scheme.bits) - 1)
    places = [(q_weight >> np.uint32(scheme.bits * place)) & mask for place in range(scheme.per_word)]
    stored = np.stack(places, axis=-1).reshape(outputs, groups, -1)[:, :, : scheme.group_size]
    weight = (stored.astype(np.float32) - np.float32(scheme.max_int)) * q_scale.astype(np.float32)[:, :, None]
    return np.ascontiguousarray(weight.reshape(outputs, -1)[:, :inputs])
