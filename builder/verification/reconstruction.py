"""Dequantized weights against their source, weight by weight: is each where rounding to nearest puts it?

This catches what no limit on logits can, one wrong scale among thousands. Rounding to nearest in groups (see
quant/reference.py, M = max_int) means, for every group:

- its scale is max |w| / M, to half a unit in the last place of the scale's dtype;
- every weight is within half a step (a step is the scale), or as far off as clipping the group's largest weight to M
  steps explains, where the scale was rounded down (that is more than half a step only for subnormal scales).

What is not quantized must be the source rounded to the scheme's dtype, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from builder.core.step import Json
from builder.quant.layout import Scheme

STEP_SLACK = 1e-5  # w / scale + M is rounded in float32, at magnitudes up to 2 M
BLOCK_BYTES = 1 << 20  # of float32 compared at a time, so that it stays in the cache


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """How one parameter came back.

    ``rms_error``: relative to the root mean square of the weights. ``steps``: the largest distance of a weight that
    clipping does not explain, in steps (0.5 is right); for plain parameters, how many weights are not the source
    rounded. ``scale_ulps``: the largest distance of a scale from max |w| / M in units of its last place (0.5 is right).
    ``row``: where the worse of the two is.
    """

    rms_error: float
    steps: float
    scale_ulps: float
    row: int

    @property
    def good(self) -> bool:
        return self.steps <= 0.5 + STEP_SLACK and self.scale_ulps <= 0.501


def plain(source: np.ndarray, stored: np.ndarray, scheme: Scheme) -> Reconstruction:
    """A parameter that the scheme only casts; both float32."""
    with np.errstate(over="ignore"):
        wrong = source.astype(scheme.dtype).astype(np.float32) != stored
    size = np.sqrt(np.mean(np.square(source, dtype=np.float64)))
    error = np.sqrt(np.mean(np.square(source - stored, dtype=np.float64)))
    row = int(np.argwhere(wrong)[0][0]) if wrong.any() else 0
    return Reconstruction(float(error / size) if size else float(error), float(wrong.sum()), 0.0, row)


def grouped(source: np.ndarray, weight: np.ndarray, scale: np.ndarray, scheme: Scheme) -> Reconstruction:
    """A packed parameter: source and dequantized weight, float32 (out, in); scale (out, groups) as it is stored."""
    rows = max(1, BLOCK_BYTES // (4 * source.shape[1]))
    error, size, steps, ulps, row = 0.0, 0.0, 0.0, 0.0, 0
    for start in range(0, len(source), rows):
        block = source[start : start + rows]
        difference = block - weight[start : start + rows]
        error += float(np.vdot(difference, difference))
        size += float(np.vdot(block, block))
        steps_R, ulps_R = _distances(block, difference, scale[start : start + rows], scheme)
        worse = np.maximum(steps_R, ulps_R)
        if worse.max() > max(steps, ulps):
            row = start + int(worse.argmax())
        steps, ulps = max(steps, float(steps_R.max())), max(ulps, float(ulps_R.max()))
    return Reconstruction(float(np.sqrt(error / size)) if size else float(np.sqrt(error)), steps, ulps, row)


def _distances(
    source: np.ndarray, difference: np.ndarray, scale: np.ndarray, scheme: Scheme
) -> tuple[np.ndarray, np.ndarray]:
    """Per row: the largest distance of a weight in steps, of a scale in units of its last place."""
    step_RG = scale.astype(np.float32)
    peak_RG = _largest(source, scheme.group_size)
    error_RG = _largest(difference, scheme.group_size)
    error_RG[error_RG <= peak_RG - np.float32(scheme.max_int) * step_RG] = 0  # clipping explains it
    saturated_RG = np.minimum(peak_RG / np.float32(scheme.max_int), np.float32(np.finfo(scheme.dtype).max))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ulps_RG = np.abs(saturated_RG - step_RG) / np.spacing(scale).astype(np.float32)
        steps_RG = np.where(error_RG == 0, 0, error_RG / step_RG)
    return steps_RG.max(axis=1), ulps_RG.max(axis=1)


def _largest(values_RI: np.ndarray, group_size: int) -> np.ndarray:
    """The largest magnitude of each group of a row; the last group may be shorter."""
    rows, inputs = values_RI.shape
    even = inputs // group_size * group_size
    largest: np.ndarray = np.abs(values_RI[:, :even]).reshape(rows, -1, group_size).max(axis=2)
    if even == inputs:
        return largest
    return np.concatenate([largest, np.abs(values_RI[:, even:]).max(axis=1, keepdims=True)], axis=1)


def report(parameters: Mapping[str, Reconstruction]) -> Json:
    """JSON: the relative error of every parameter, and those that are not what rounding to nearest gives."""
    return {
        "rms_error": {name: found.rms_error for name, found in sorted(parameters.items())},
        "wrong": [
            {"parameter": name, "row": found.row, "steps": found.steps, "scale_ulps": found.scale_ulps}
            for name, found in sorted(parameters.items())
            if not found.good
        ],
    }
