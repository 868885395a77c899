"""awq: scale the input channels that matter before rounding, and undo it in what makes them.

J. Lin, J. Tang, H. Tang, S. Yang, W.-M. Chen, W.-C. Wang, G. Xiao, X. Dang, C. Gan, S. Han, "AWQ: Activation-aware
Weight Quantization for LLM Compression and Acceleration", arXiv:2306.00978, section 3.2: s = m^alpha, m the mean
magnitude of each input channel, alpha from a grid over [0, 1] (equation 5), by the error of the layer's own output.

Both m and the error come from the second moments H = X^T X / T that calibrate wrote: m is the root mean square,
sqrt(diag H), for the mean magnitude, and the mean squared error of the outputs, whose weights W come back as W + D, is
tr(D H D^T), without another pass over the text. The rounding in the search is that of mse, which rounds the scaled
weights in the end, so clipping (their second search, per group) is part of it. alpha = 0 scales nothing and is tried
first: on the calibration text no layer is worse than by mse.

The search itself is here; builder/steps/scales.py runs it for every fold of a family.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from llm_build.quant import storage
from llm_build.quant.layout import Scheme
from llm_build.quant.methods import Method, Search, mse

ALPHAS = tuple(step / 20 for step in range(21))
ROWS = 512  # of a matrix that are tried, evenly spread
_LARGEST_RATIO = 1e4  # of two magnitudes; a channel that is always zero has none


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a matrix, float32 (R, I), the moments of their input (I, I), and how they are packed."""

    weights_RI: np.ndarray
    moment_II: np.ndarray
    scheme: Scheme
    share: float  # how many rows of the matrix each of these stands for


def prepare(scheme: Scheme, moment: np.ndarray | None, damping: float, search: Search | None = None) -> Method:
    """The method for weights that are scaled already."""
    return mse.prepare(scheme, None, damping, search)


def candidates(squares_C: np.ndarray) -> list[np.ndarray]:
    """Scales to try, float32 (C,): one per alpha, around 1, from the mean squares of the channels."""
    magnitudes_C = np.sqrt(np.maximum(squares_C, 0).astype(np.float64))
    largest = float(magnitudes_C.max()) or 1.0
    magnitudes_C = np.maximum(magnitudes_C, largest / _LARGEST_RATIO)
    magnitudes_C /= np.sqrt(magnitudes_C.max() * magnitudes_C.min())
    return [(magnitudes_C**alpha).astype(np.float32) for alpha in ALPHAS]


def errors(parts: Iterable[Part], scales: list[np.ndarray]) -> np.ndarray:
    """The squared error of the outputs for each of ``scales`` (I,), over all parts; float64."""
    totals = np.zeros(len(scales))
    for part in parts:
        for index, scale_I in enumerate(scales):
            moved_RI = round_trip(part.weights_RI * scale_I, part.scheme) / scale_I - part.weights_RI
            totals[index] += part.share * float(np.vdot(moved_RI @ part.moment_II, moved_RI))
    return totals


def round_trip(weights_RI: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The weights as they come back, rounded by mse."""
    rows, inputs = weights_RI.shape
    groups = -(-inputs // scheme.group_size)
    padded_RP = np.zeros((rows, groups * scheme.group_size), np.float32)
    padded_RP[:, :inputs] = weights_RI
    weights_SG = np.ascontiguousarray(padded_RP.reshape(-1, scheme.group_size).T)
    peak_G = np.abs(weights_SG).max(axis=0)
    nearest_G, _ = storage.scales(peak_G / np.float32(scheme.max_int), scheme.dtype)
    step_G = storage.widen(mse.best_scales(weights_SG, nearest_G, scheme), scheme.dtype)
    level_SG = np.rint(weights_SG / np.where(step_G == 0, np.float32(1), step_G))
    np.clip(level_SG, np.float32(-scheme.max_int), np.float32(scheme.max_int + 1), out=level_SG)
    level_SG *= step_G
    result: np.ndarray = level_SG.T.reshape(padded_RP.shape)[:, :inputs]
    return result
