"""Dequantized weights against their source, weight by weight: is each where rounding to nearest puts it?

This catches what no limit on logits can, one wrong scale among thousands. Rounding to nearest in groups (see
quant/reference.py, M = the largest stored magnitude) means, for every group:

- its scale is max |w| / M, to half a unit in the last place of the scale's dtype;
- every weight is within half a step (a step is the scale, for 8-bit floats times the distance of neighbours there), or
  as far off as clipping the group's largest weight to M steps explains, where the scale was rounded down (that is more
  than half a step only for subnormal scales).

With zero points, low <= 0 <= high the ends of the group and T = 2^bits - 1: the scale is (high - low) / T, and what a
weight may be off beyond half a step is what the range has beyond T steps.

Another method (quant/methods) has another rule. mse: the scale is one that is tried, so max |w| lies where STEPS says,
and every weight is within half a step of its source or clipped; awq: the same, of its source as it was scaled. gptq
moves weights on purpose, so no weight can be judged alone: a row must point where its source does, as another row would
not (_GPTQ_COSINE), and the exact check runs over these very weights.

What is not quantized must be the source rounded to the scheme's dtype, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from llm_build.core.step_io import Json
from llm_build.quant.layout import FLOAT8_LARGEST, FLOAT8_MANTISSA_BITS, FLOAT8_SMALLEST, Scheme
from llm_build.quant.methods.mse import STEPS
from llm_build.quant.storage import LARGEST, narrow, scales, widen

_STEP_SLACK = 1e-5  # w / scale + M is rounded in float32, at magnitudes up to 2 M
# Of a row with its source. A row in the place of another has about 0; in 3 bits 0.9 and more are found, and 0.65 for a
# key of SmolLM2, which gptq makes 1.7 times as long where its inputs are small.
_GPTQ_COSINE = 0.4
_GPTQ_LENGTH = 3.0  # of a row, over that of its source
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
        return self.steps <= 0.5 + _STEP_SLACK and self.scale_ulps <= 0.501


def plain(source: np.ndarray, stored: np.ndarray, scheme: Scheme) -> Reconstruction:
    """A parameter that the scheme only casts; both float32."""
    with np.errstate(over="ignore"):
        wrong = widen(narrow(source, scheme.dtype), scheme.dtype) != stored
    size = np.sqrt(np.mean(np.square(source, dtype=np.float64)))
    error = np.sqrt(np.mean(np.square(source - stored, dtype=np.float64)))
    row = int(np.argwhere(wrong)[0][0]) if wrong.any() else 0
    return Reconstruction(float(error / size) if size else float(error), float(wrong.sum()), 0.0, row)


def grouped(
    source: np.ndarray, weight: np.ndarray, scale: np.ndarray, scheme: Scheme, method: str = "rtn"
) -> Reconstruction:
    """A packed parameter: source and dequantized weight, float32 (out, in); scale (out, groups) as it is stored."""
    distances = _RULES[method if scheme.kind == "group" or method == IMPORTED else "rtn"]
    if scheme.zero_point and method == "rtn":
        distances = _asymmetric_distances
    scheme = scheme.for_width(source.shape[1])
    if scheme.scale_per == "tensor":
        distances = partial(_distances, peak=np.abs(source).max())
    rows = max(1, BLOCK_BYTES // (4 * source.shape[1]))
    error, size, steps, ulps, row = 0.0, 0.0, 0.0, 0.0, 0
    for start in range(0, len(source), rows):
        block = source[start : start + rows]
        difference = block - weight[start : start + rows]
        error += float(np.vdot(difference, difference))
        size += float(np.vdot(block, block))
        steps_R, ulps_R = distances(block, difference, scale[start : start + rows], scheme)
        worse = np.maximum(steps_R, ulps_R)
        if worse.max() > max(steps, ulps):
            row = start + int(worse.argmax())
        steps, ulps = max(steps, float(steps_R.max())), max(ulps, float(ulps_R.max()))
    return Reconstruction(float(np.sqrt(error / size)) if size else float(np.sqrt(error)), steps, ulps, row)


def _distances(
    source: np.ndarray, difference: np.ndarray, scale: np.ndarray, scheme: Scheme, peak: np.float32 | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Per row: the largest distance of a weight in steps, of a scale in units of its last place. ``peak``: the largest
    magnitude of the tensor, if that has one scale."""
    step_RG = widen(scale, scheme.scale_dtype)
    limit = np.float32(scheme.max_magnitude)
    peak_RG = _largest(source, scheme.group_size) if peak is None else np.full_like(step_RG, peak)
    error_RG = _largest(difference, scheme.group_size)
    saturated_RG = np.minimum(peak_RG / limit, np.float32(LARGEST[scheme.scale_dtype]))
    place = np.spacing(step_RG) * np.float32(1 << 16) if scheme.scale_dtype == "bfloat16" else np.spacing(scale)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ulps_RG = np.abs(saturated_RG - step_RG) / place.astype(np.float32)
        if scheme.kind in FLOAT8_LARGEST:
            steps_RG = _float8_steps(source, difference, step_RG, scheme)
        else:
            error_RG[error_RG <= peak_RG - limit * step_RG] = 0  # clipping explains it
            steps_RG = np.where(error_RG == 0, 0, error_RG / step_RG)
    return steps_RG.max(axis=1), ulps_RG.max(axis=1)


def _asymmetric_distances(
    source: np.ndarray, difference: np.ndarray, scale: np.ndarray, scheme: Scheme
) -> tuple[np.ndarray, np.ndarray]:
    """The same for groups with zero points."""
    step_RG = widen(scale, scheme.dtype)
    range_RG = _largest(np.maximum(source, 0), scheme.group_size) + _largest(np.minimum(source, 0), scheme.group_size)
    expected_RG = np.minimum(range_RG / np.float32(scheme.max_level), np.float32(LARGEST[scheme.dtype]))
    place = np.spacing(step_RG) * np.float32(1 << 16) if scheme.dtype == "bfloat16" else np.spacing(scale)
    beyond_RG = np.maximum(range_RG - np.float32(scheme.max_level) * step_RG, 0)
    error_RG = np.maximum(_largest(difference, scheme.group_size) - beyond_RG, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps_RG = np.where(error_RG == 0, 0, error_RG / step_RG)
    return steps_RG.max(axis=1), (np.abs(expected_RG - step_RG) / place.astype(np.float32)).max(axis=1)


def _exact_distances(
    source: np.ndarray, difference: np.ndarray, scale: np.ndarray, scheme: Scheme
) -> tuple[np.ndarray, np.ndarray]:
    """The same for what was taken over from the checkpoint: how many weights of a row are not bit for bit the same."""
    wrong_R = np.count_nonzero(difference, axis=1).astype(np.float32)
    return wrong_R, np.zeros(len(source), np.float32)


def _mse_distances(
    source: np.ndarray, difference: np.ndarray, scale: np.ndarray, scheme: Scheme
) -> tuple[np.ndarray, np.ndarray]:
    """The same for mse; a scale's distance is from the range of those that are tried."""
    step_RG = np.abs(widen(scale, scheme.dtype))
    step_RI = np.repeat(step_RG, scheme.group_size, axis=1)[:, : source.shape[1]]
    peak_RG = _largest(source, scheme.group_size)
    low_RG, high_RG = (
        widen(scales(peak_RG / np.float32(scheme.max_int + steps), scheme.dtype)[0], scheme.dtype)
        for steps in (STEPS[-1], STEPS[0])
    )
    error_RI = np.abs(difference)
    rounding_RI = np.abs(source) * np.float32(2.0**-22)  # of the differences themselves, which are float32
    error_RI[error_RI <= np.abs(source) - np.float32(scheme.max_int) * step_RI + rounding_RI] = 0  # clipped
    error_RI = np.maximum(error_RI - rounding_RI, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps_RI = np.where(error_RI == 0, 0, error_RI / step_RI)
        outside_RG = np.maximum(np.maximum(low_RG - step_RG, step_RG - high_RG), 0) / np.spacing(high_RG)
    return steps_RI.max(axis=1), outside_RG.max(axis=1)


def _gptq_distances(
    source: np.ndarray, difference: np.ndarray, scale: np.ndarray, scheme: Scheme
) -> tuple[np.ndarray, np.ndarray]:
    """The same for gptq, which has no rule for a weight: a row's direction and length, scaled so that _GPTQ_COSINE and
    _GPTQ_LENGTH are half a step. A row that came back as zeros is as far as rounding can take it."""
    stored = source - difference
    length_R, size_R = (np.sqrt(np.square(values).sum(axis=1)) for values in (stored, source))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine_R = (stored * source).sum(axis=1) / (length_R * size_R)
        turned_R = (1 - cosine_R) / np.float32(2 * (1 - _GPTQ_COSINE))
        steps_R = np.maximum(turned_R, length_R / size_R / np.float32(2 * _GPTQ_LENGTH))
    steps_R = np.where(length_R == 0, 0, np.where(size_R == 0, np.inf, steps_R))
    return steps_R.astype(np.float32), np.zeros(len(source), np.float32)


_RULES = {"rtn": _distances, "mse": _mse_distances, "awq": _mse_distances, "gptq": _gptq_distances}
IMPORTED = "imported"
_RULES[IMPORTED] = _exact_distances


def _float8_steps(source: np.ndarray, difference: np.ndarray, scale_RG: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The largest distance of each group in steps of its own weight: neighbours are 2^(exponent - mantissa bits) apart,
    subnormals as far as the smallest normal numbers."""
    scale_RI = np.repeat(scale_RG, scheme.group_size, axis=1)[:, : source.shape[1]]
    _, exponent = np.frexp(source / np.where(scale_RI == 0, 1, scale_RI))
    binade = np.maximum(exponent - 1, FLOAT8_SMALLEST[scheme.kind])
    step_RI = np.ldexp(scale_RI, binade - FLOAT8_MANTISSA_BITS[scheme.kind])
    clipped = np.abs(difference) <= np.abs(source) - np.float32(scheme.max_magnitude) * scale_RI
    return _largest(np.where(clipped | (difference == 0), 0, difference / step_RI), scheme.group_size)


def _largest(values_RI: np.ndarray, group_size: int) -> np.ndarray:
    """The largest magnitude of each group of a row; the last group may be shorter."""
    rows, inputs = values_RI.shape
    even = inputs // group_size * group_size
    largest: np.ndarray = np.abs(values_RI[:, :even]).reshape(rows, -1, group_size).max(axis=2)
    if even == inputs:
        return largest
    return np.concatenate([largest, np.abs(values_RI[:, even:]).max(axis=1, keepdims=True)], axis=1)


def equal_rows(weight: np.ndarray) -> tuple[int, int] | None:
    """The first two rows that are the same, or None: to a router, two experts of which either may be taken."""
    first: dict[bytes, int] = {}
    for row, values in enumerate(np.ascontiguousarray(weight)):
        if (before := first.setdefault(values.tobytes(), row)) != row:
            return before, row
    return None


def report(parameters: Mapping[str, Reconstruction]) -> Json:
    """JSON: the relative error of every parameter, and those that are not what rounding to nearest gives."""
    return {
        "rms_error": {name: result.rms_error for name, result in sorted(parameters.items())},
        "wrong": [
            {"parameter": name, "row": result.row, "steps": result.steps, "scale_ulps": result.scale_ulps}
            for name, result in sorted(parameters.items())
            if not result.good
        ],
    }
