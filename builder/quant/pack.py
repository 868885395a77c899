"""Quantize and cast blocks of rows, fast: blocks that stay in the cache, in-place ufuncs, no large temporaries.

A temporary of a few hundred KiB is a fresh mapping each time, and its page faults cost more than the arithmetic on it:
so every pass writes into memory that the Packer holds.

Bit for bit equal to ``reference``, whose docstring states the rules. A block is a few hundred KiB of checkpoint rows.
Legend: R rows of a block, I input width, G groups of a row, S group size, W words of a row.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llm_build.quant import float8, storage
from llm_build.quant.layout import FLOAT8_LARGEST, Scheme
from llm_build.quant.methods import Method

assert sys.byteorder == "little", "the artifact's files are little-endian and are written as memory holds them"

BLOCK_WEIGHTS = 1 << 18  # 1 MiB as float32; smaller blocks lose to call overhead, larger ones leave the cache
RAW: Mapping[str, np.dtype] = {  # safetensors dtype -> how its bytes come; 16 bits are handled as bits
    "F16": np.dtype(np.uint16),
    "BF16": np.dtype(np.uint16),
    "F32": np.dtype(np.uint32),
    "F64": np.dtype(np.float64),
}
_SOURCE_DTYPE = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
_INFINITY_BITS = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000, "F64": 0x7F800000}
SHORT = 128  # weights; see _largest


@dataclass(slots=True)
class Counts:
    """What was met on the way, in weights (``saturated``: in scales)."""

    nonfinite: int = 0  # NaN or infinite in the source
    overflowed: int = 0  # finite in the source, infinite after a cast
    saturated: int = 0  # scales that took the largest finite value instead of infinity

    def add(self, other: Counts) -> None:
        self.nonfinite += other.nonfinite
        self.overflowed += other.overflowed
        self.saturated += other.saturated


def block_rows(inputs: int) -> int:
    """How many rows of this width make up a block."""
    return max(1, BLOCK_WEIGHTS // max(1, inputs))


def widen(raw: np.ndarray, source: str, out: np.ndarray, times: float = 1.0) -> None:
    """Weights as held -> float32, exactly (F64 is rounded). NaN and infinity of F16 come out as garbage; ``times``, a
    power of two, is for F16 alone."""
    bits = out.view(np.int32)
    if source == "F16":
        storage.widen_half(raw, out, times)
    elif source == "BF16":
        np.copyto(bits, raw.view(np.int16))
        np.left_shift(bits, 16, out=bits)
    elif source == "F32":
        np.copyto(out, raw.view(np.float32))
    else:
        with np.errstate(over="ignore", under="ignore"):
            np.copyto(out, raw, casting="same_kind")


def _widen_magnitudes(bits: np.ndarray, source: str, out: np.ndarray, times: float = 1.0) -> None:
    """``widen`` for bits without a sign, which saves a pass."""
    if source != "F16":
        widen(bits, source, out)
        return
    result = out.view(np.uint32)
    np.copyto(result, bits)
    np.left_shift(result, np.uint32(13), out=result)
    if times != storage.HALF_IN_FLOAT32:
        np.multiply(out, np.float32(times / storage.HALF_IN_FLOAT32), out=out)


def widen_exactly(raw: np.ndarray, source: str, out: np.ndarray) -> None:
    """``widen`` for blocks that hold NaN or infinity."""
    if source == "F16":
        np.copyto(out, raw.view(np.float16))
    else:
        widen(raw, source, out)


class Packer:
    """Quantizes blocks of up to ``rows`` rows of one matrix; holds the scratch memory."""

    def __init__(self, rows: int, inputs: int, source: str, scheme: Scheme, method: Method | None = None) -> None:
        """``method``: how scales and integers are chosen (quant/methods); None is rounding to nearest."""
        self.scheme, self.source, self.inputs, self.method = scheme.for_width(inputs), source, inputs, method
        scheme = self.scheme
        self.groups = -(-inputs // scheme.group_size)
        padded = self.groups * scheme.group_size
        sixteen = RAW[source].itemsize == 2
        self.weights_RP = np.empty((rows, padded), np.float32)
        self.magnitudes_RP = np.zeros((rows, padded), np.uint16 if sixteen else np.uint32)  # zero past the input width
        self.sign_mask = np.uint16(0x7FFF) if sixteen else np.uint32(0x7FFFFFFF)
        self.splits_signs = scheme.kind in FLOAT8_LARGEST  # float8 packs signs apart from magnitudes
        self.signs_RP = np.zeros((rows, padded) if self.splits_signs else 0, np.uint8)
        slots = scheme.words_per_group * scheme.per_word
        self.levels_GS = np.full((rows * self.groups, slots), scheme.zero_level, np.uint8)
        self.scratch = np.empty((3, rows * padded), np.uint32)  # of one step at a time
        self.scale_source = _SOURCE_DTYPE[scheme.scale_dtype]
        self.tensor_scale: np.ndarray | None = None  # the scale of the tensor, as held, where it has but one

    def largest(self, raw_RI: np.ndarray) -> np.float32:
        """The largest magnitude of a block; NaN and infinity take no part."""
        self._load(raw_RI)
        bits = self.magnitudes_RP[: len(raw_RI)].max(keepdims=True).reshape(1)
        value = np.empty(1, np.float32)
        widen(bits, "F32" if bits.dtype == np.uint32 else self.source, value)
        return np.float32(value[0])

    def scales(self, raw_RI: np.ndarray, scales_RG: np.ndarray) -> Counts:
        """Only the scales of a block, for a shard that holds them apart from their words."""
        _, scales, counts = self._weights_and_scales(raw_RI)
        scales_RG[:] = scales.reshape(scales_RG.shape)
        return counts

    def pack(self, raw_RI: np.ndarray, words_RW: np.ndarray, scales_RG: np.ndarray) -> Counts:
        """Quantize a block.

        Args:
            raw_RI: R <= rows rows of the source, held as ``RAW[source]``.
            words_RW: uint32, written; C-contiguous.
            scales_RG: the scheme's dtype as ``storage`` holds it, written.
        """
        rows = raw_RI.shape[0]
        weights_RP, scales, counts = self._weights_and_scales(raw_RI)
        scales_RG[:] = scales.reshape(rows, self.groups)
        steps = storage.widen_scales(scales, self.scheme.scale_dtype)
        weights_GS = weights_RP.reshape(rows * self.groups, self.scheme.group_size)
        if counts.nonfinite:
            self._zero(weights_GS, np.isnan(weights_GS))
        if not steps.all():
            self._zero(weights_GS, steps == 0)
            steps[steps == 0] = 1
        unclipped, factor = self._needs_no_clipping(steps, counts), self._factor()
        if factor != 1:
            steps *= np.float32(factor)
        with np.errstate(over="ignore", under="ignore"):
            np.divide(weights_GS, steps[:, None], out=weights_GS)
        self._store(weights_GS, words_RW, unclipped)
        return counts

    def _factor(self) -> float:
        """What the weights are held times: where they are only divided, float16 stays as its bits are, which saves a
        pass. Scales in float16 can go as low with them; others may be too small for that."""
        low = self.source == self.scale_source == "F16" and self.method is None
        return storage.HALF_IN_FLOAT32 if low else 1.0

    def _zero(self, weights_GS: np.ndarray, where: np.ndarray) -> None:
        weights_GS[where] = 0
        if self.splits_signs:
            self._signs(weights_GS)[where] = 0

    def _signs(self, weights_GS: np.ndarray) -> np.ndarray:
        """The signs that belong to these weights, in their shape."""
        return self.signs_RP.reshape(-1)[: weights_GS.size].reshape(weights_GS.shape)

    def _needs_no_clipping(self, steps: np.ndarray, counts: Counts) -> bool:
        """Whether no ratio can round to a level that the scheme has not: each is at most its largest level but for the
        rounding of its scale, which is 2^-9 of a normal number at most, and 127 / 2^9 is less than half a level."""
        if self.method is not None or self.tensor_scale is not None or counts.nonfinite or counts.saturated:
            return False
        return bool(steps.min(initial=1) >= storage.SMALLEST_NORMAL[self.scheme.scale_dtype])

    def _weights_and_scales(self, raw_RI: np.ndarray) -> tuple[np.ndarray, np.ndarray, Counts]:
        """The weights to round (R, padded width), the scales of all their groups, flat, and what was met."""
        weights_RP, counts = self._load(raw_RI)
        scales = self._scales(len(raw_RI), counts)
        if self.method is not None:
            if counts.nonfinite:
                weights_RP[~np.isfinite(weights_RP)] = 0
            scales = self.method(weights_RP, scales)
        return weights_RP, scales, counts

    def _load(self, raw_RI: np.ndarray) -> tuple[np.ndarray, Counts]:
        """Fill weights_RP and magnitudes_RP (bit patterns without their sign, which order as the weights do)."""
        rows, counts = raw_RI.shape[0], Counts()
        weights_RP, magnitudes_RP = self.weights_RP[:rows], self.magnitudes_RP[:rows]
        weights_RP[:, self.inputs :] = 0  # the block before left its ratios there
        weights_RI = weights_RP[:, : self.inputs]
        if not self.splits_signs or magnitudes_RP.dtype != np.uint16:
            widen(raw_RI, self.source, weights_RI, self._factor())
        bits = raw_RI if magnitudes_RP.dtype == np.uint16 else weights_RI.view(np.uint32)
        np.bitwise_and(bits, self.sign_mask, out=magnitudes_RP[:, : self.inputs])
        if self.splits_signs:
            self._split_signs(bits, rows)
        if magnitudes_RP.max() >= _INFINITY_BITS[self.source]:
            nonfinite = magnitudes_RP >= _INFINITY_BITS[self.source]
            counts.nonfinite = int(np.count_nonzero(nonfinite))
            magnitudes_RP[nonfinite] = 0
            widen_exactly(raw_RI, self.source, weights_RI)
            weights_RI *= np.float32(self._factor())
            if self.splits_signs:
                np.abs(weights_RI, out=weights_RI)
        return weights_RP, counts

    def _split_signs(self, bits_RI: np.ndarray, rows: int) -> None:
        """Fill signs_RP with the sign bits, and weights_RP with the magnitudes."""
        magnitudes_RI = self.magnitudes_RP[:rows, : self.inputs]
        above = self.scratch[0].view(bits_RI.dtype)[: bits_RI.size].reshape(bits_RI.shape)
        np.right_shift(bits_RI, bits_RI.dtype.type(bits_RI.dtype.itemsize * 8 - 8), out=above)
        signs_RI = self.signs_RP[:rows, : self.inputs]
        np.copyto(signs_RI, above, casting="unsafe")
        np.bitwise_and(signs_RI, np.uint8(0x80), out=signs_RI)
        dtype = self.source if bits_RI.dtype == np.uint16 else "F32"
        _widen_magnitudes(magnitudes_RI, dtype, self.weights_RP[:rows, : self.inputs], self._factor())

    def _scales(self, rows: int, counts: Counts) -> np.ndarray:
        """Scales of all groups of the block, flat, in the scheme's scale_dtype."""
        if self.tensor_scale is not None:
            return np.repeat(self.tensor_scale.reshape(1), rows)
        bits = _largest(self.magnitudes_RP[:rows].reshape(-1), self.scheme.group_size, self.scratch)
        largest = np.empty(bits.size, np.float32)
        widen(bits, "F32" if bits.dtype == np.uint32 else self.source, largest)
        largest /= np.float32(self.scheme.max_magnitude)
        scales, counts.saturated = storage.scales(largest, self.scheme.scale_dtype)
        return scales

    def _store(self, ratios_GS: np.ndarray, words_RW: np.ndarray, unclipped: bool) -> None:
        """``unclipped``: no ratio needs to be clipped."""
        levels_GS = self.levels_GS[: ratios_GS.shape[0]]
        inside_GS = levels_GS[:, : self.scheme.group_size]
        if self.scheme.kind == "group":
            middle = self.scheme.max_int
            top = 2 * middle if self.method is None else (1 << self.scheme.bits) - 1
            np.add(ratios_GS, np.float32(middle), out=ratios_GS)
            if not unclipped:
                np.clip(ratios_GS, np.float32(0), np.float32(top), out=ratios_GS)
            np.rint(ratios_GS, out=ratios_GS)
            np.copyto(inside_GS, ratios_GS, casting="unsafe")
        elif self.scheme.kind == "int8":
            if not unclipped:
                np.clip(ratios_GS, np.float32(-127), np.float32(127), out=ratios_GS)
            np.rint(ratios_GS, out=ratios_GS)
            np.copyto(inside_GS.view(np.int8), ratios_GS, casting="unsafe")
        else:
            float8.encode(ratios_GS, self.scheme.kind, self._signs(ratios_GS), inside_GS, self.scratch)
        words_RW.reshape(-1)[:] = combine(levels_GS.reshape(-1), self.scheme, self.scratch)


def _largest(values: np.ndarray, group: int, scratch: np.ndarray) -> np.ndarray:
    """Maximum of each run of ``group`` unsigned integers. ``scratch``: uint32, at least as large as ``values``.

    numpy's own reduction pays a call per row, so short ones are transposed: eight bytes at a time, and each column of
    them is then reduced in full vectors.
    """
    maxima: np.ndarray
    lanes = 8 // values.itemsize
    if group > SHORT or group % lanes:
        maxima = values.reshape(-1, group).max(axis=1)
        return maxima
    eights = values.view(np.uint64).reshape(-1, group // lanes)
    transposed = scratch.reshape(-1).view(np.uint64)[: eights.size].reshape(eights.shape[::-1])
    np.copyto(transposed, eights.T)
    maxima = np.maximum.reduce(transposed.view(values.dtype), axis=0)
    while lanes > 1:
        maxima = np.maximum(maxima[::2], maxima[1::2])
        lanes //= 2
    return maxima


def combine(levels: np.ndarray, scheme: Scheme, scratch: np.ndarray) -> np.ndarray:
    """Bytes that hold ``bits`` bits each -> uint32 words, ``per_word`` in each, lowest first."""
    width, count = scheme.bits, scheme.per_word
    joined, spare = (row.view(np.uint16) for row in scratch[:2])
    while count % 2 == 0 and 2 * width <= 8:  # two neighbours into one byte
        pairs = levels.view(np.uint16)
        both = joined[: pairs.size]
        np.right_shift(pairs, np.uint16(8 - width), out=both)
        np.bitwise_or(both, pairs, out=both)
        levels = spare.view(np.uint8)[: pairs.size]
        np.copyto(levels, both, casting="unsafe")
        width, count = 2 * width, count // 2
    if width == 8 and count == 4:
        return levels.view(np.uint32)
    words = levels[::count].astype(np.uint32)
    for place in range(1, count):
        words |= levels[place::count].astype(np.uint32) << np.uint32(place * width)
    return words


def cast(raw: np.ndarray, source: str, out: np.ndarray, dtype: str) -> Counts:
    """Store a block unquantized: weights stored as ``RAW[source]`` -> ``out``, ``dtype`` as ``storage`` holds it.

    Widening is exact, narrowing rounds half to even. NaN and infinity stay what they are, overflow becomes infinity;
    both are counted, and refused by quantize unless they are allowed.
    """
    counts, stored_dtype = Counts(), _SOURCE_DTYPE[dtype]
    if source == stored_dtype:
        np.copyto(out.view(RAW[source]), raw)
    elif dtype == "float32":
        exactly = source == "F16" and _has_nonfinite(raw, source)
        (widen_exactly if exactly else widen)(raw, source, out)
    else:
        wide = np.empty(raw.shape, np.float32)
        exactly = source == "F16" and _has_nonfinite(raw, source)
        (widen_exactly if exactly else widen)(raw, source, wide)
        out[:] = storage.narrow(wide, dtype)
    stored = out.view(RAW[stored_dtype])
    if _has_nonfinite(stored, stored_dtype):
        counts.nonfinite = _count_nonfinite(raw, source)
        counts.overflowed = _count_nonfinite(stored, stored_dtype) - counts.nonfinite
    return counts


def _has_nonfinite(raw: np.ndarray, source: str) -> bool:
    """Whether bits of F16, BF16 or F32 hold NaN or infinity; several times faster than isfinite."""
    return bool(_magnitudes(raw).max(initial=0) >= _INFINITY_BITS[source])


def _count_nonfinite(raw: np.ndarray, source: str) -> int:
    if source == "F64":
        return int(raw.size - np.count_nonzero(np.isfinite(raw)))
    return int(np.count_nonzero(_magnitudes(raw) >= _INFINITY_BITS[source]))


def _magnitudes(raw: np.ndarray) -> np.ndarray:
    """Bits without their sign; they order as the magnitudes do."""
    bits: np.ndarray = np.bitwise_and(raw, raw.dtype.type((1 << (raw.dtype.itemsize * 8 - 1)) - 1))
    return bits
