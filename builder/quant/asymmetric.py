"""Group schemes with zero points, fast: bit for bit what ``reference`` describes.

Legend: R rows of a block, I input width, G groups (of all rows), S group size, W words of a row, Z words of its zeros.
"""

from __future__ import annotations

import numpy as np

from llm_build.quant import pack, storage
from llm_build.quant.layout import Scheme
from llm_build.quant.pack import Counts


class Packer(pack.Packer):
    """Quantizes blocks of rows to values of 0 .. 2^bits - 1, a scale and a zero point per group."""

    def pack(
        self, raw_RI: np.ndarray, words_RW: np.ndarray, scales_RG: np.ndarray, zeros_RZ: np.ndarray | None = None
    ) -> Counts:
        """As ``pack.Packer.pack``; ``zeros_RZ``: uint32 words of zero points, written."""
        weights_GS, scales, zeros, counts = self._ranges(raw_RI)
        self._store_groups(scales, zeros, scales_RG, zeros_RZ)
        steps = storage.widen(scales, self.scheme.dtype)
        weights_GS[np.isnan(weights_GS)] = 0
        weights_GS[steps == 0] = 0
        steps[steps == 0] = 1
        levels_GS = self.levels_GS[: len(weights_GS)]
        with np.errstate(over="ignore", under="ignore"):
            np.divide(weights_GS, steps[:, None], out=weights_GS)
            np.add(weights_GS, zeros[:, None], out=weights_GS)
        np.clip(weights_GS, np.float32(0), np.float32(self.scheme.max_level), out=weights_GS)
        np.rint(weights_GS, out=weights_GS)
        np.copyto(levels_GS[:, : self.scheme.group_size], weights_GS, casting="unsafe")
        words_RW.reshape(-1)[:] = words_of(levels_GS, self.scheme)
        return counts

    def _factor(self) -> float:
        return 1.0

    def _ranges(self, raw_RI: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, Counts]:
        """Weights (G, S), scales as stored and zero points in float32, both (G,), and what was met."""
        weights_RP, counts = self._load(raw_RI)
        weights_GS = weights_RP.reshape(-1, self.scheme.group_size)
        finite_GS = np.where(np.isfinite(weights_GS), weights_GS, np.float32(0)) if counts.nonfinite else weights_GS
        low = np.minimum(finite_GS.min(axis=1), np.float32(0))
        high = np.maximum(finite_GS.max(axis=1), np.float32(0))
        with np.errstate(over="ignore", under="ignore"):
            scales, counts.saturated = storage.scales(
                (high - low) / np.float32(self.scheme.max_level), self.scheme.dtype
            )
            steps = storage.widen(scales, self.scheme.dtype)
            zeros = np.rint(-low / np.where(steps == 0, np.float32(1), steps))
        np.minimum(zeros, np.float32(self.scheme.max_level), out=zeros)
        zeros[steps == 0] = 0
        return weights_GS, scales, zeros, counts

    def _store_groups(
        self, scales: np.ndarray, zeros: np.ndarray, scales_RG: np.ndarray, zeros_RZ: np.ndarray | None
    ) -> None:
        scales_RG[:] = scales.reshape(scales_RG.shape)
        if zeros_RZ is not None:
            zeros_RZ[:] = pack_zeros(zeros.reshape(scales_RG.shape), self.scheme)


def pack_zeros(zeros_RG: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Zero points of rows -> their words, uint32 (R, Z)."""
    rows, groups = zeros_RG.shape
    levels = np.zeros((rows, scheme.zero_words(groups) * scheme.per_word), np.uint8)
    np.copyto(levels[:, :groups], zeros_RG, casting="unsafe")
    return words_of(levels, scheme).reshape(rows, -1)


def words_of(levels: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Stored values, a byte each, in whole words -> flat uint32 words."""
    scratch = np.empty((2, -(-levels.size // 4)), np.uint32)
    return pack.combine(levels.reshape(-1), scheme, scratch)
