"""mse: the scale of each group that gives the least squared error, by trying a few.

With M = 2^(bits-1) - 1, a group's weights are turned by the sign of its largest one, so that this one can use the
stored value M + 1. A candidate puts max |w| at x steps, for every x of STEPS: below M + 1 it wastes range, above it
clips the largest weights and rounds the others finer. Each is rounded to the scheme's dtype before it is judged:

    s(x) = round(max |w| / x),   error(x) = sum_i (clip(rint(w_i / s), -M, M + 1) * s - w_i)^2

The candidates are tried in order, after max |w| / M as rtn has it, and a later one wins only if its error is smaller.
All arithmetic is float32; errors are summed in the order of the inputs, so that no block size shows.
"""

from __future__ import annotations

import numpy as np

from llm_build.quant import storage
from llm_build.quant.layout import Scheme
from llm_build.quant.methods import Method, Search

STEPS = tuple(step / 4 for step in range(-2, 16) if step)  # added to M: where the largest weight may lie, in steps
LANES = 8  # groups that a search takes at once: it needs as many
CHUNK_WEIGHTS = 1 << 17  # 512 KiB in float32; smaller chunks lose to call overhead


def prepare(scheme: Scheme, moment: np.ndarray | None, damping: float, search: Search | None = None) -> Method:
    """The method, which needs no data. ``search``: machine code for it (lowering/best_scales.py)."""

    chunk = max(1, CHUNK_WEIGHTS // scheme.group_size)
    scratch = np.empty((3, scheme.group_size, chunk), np.float32)

    def choose(weights_RP: np.ndarray, scales: np.ndarray) -> np.ndarray:
        weights_GS, chosen = weights_RP.reshape(-1, scheme.group_size), np.empty_like(scales)
        if search and len(scales) >= LANES:
            nearest_G = storage.widen_scales(scales, scheme.dtype)
            if 2 * nearest_G.max() < storage.LARGEST[scheme.dtype]:  # no candidate needs to be made finite
                return storage.narrow(search(weights_GS, nearest_G), scheme.dtype)
        for start in range(0, len(scales), chunk):
            block = slice(start, start + chunk)
            chosen[block] = best_scales(weights_GS[block].T, scales[block], scheme, scratch)
        return chosen

    return choose


def best_scales(
    weights_SG: np.ndarray, scales_G: np.ndarray, scheme: Scheme, scratch: np.ndarray | None = None
) -> np.ndarray:
    """Scales of groups that stand in columns; ``scales_G`` are those of rtn. Both as ``storage`` holds them.

    ``scratch``: float32 (3, S, G or more), for callers with many blocks: fresh memory costs page faults.
    """
    if scratch is None:
        scratch = np.empty((3, *weights_SG.shape), np.float32)
    turned_SG, work_SG, level_SG = scratch[:, :, : weights_SG.shape[1]]
    np.copyto(turned_SG, weights_SG)
    largest_G, smallest_G = turned_SG.max(axis=0), turned_SG.min(axis=0)
    sign_G = np.where(-smallest_G > largest_G, np.float32(-1), np.float32(1))
    peak_G = np.maximum(largest_G, -smallest_G)
    unit_G = np.where(peak_G == 0, np.float32(1), peak_G) * sign_G
    size_G = np.abs(unit_G)
    np.divide(turned_SG, unit_G, out=turned_SG)  # in units of the largest
    best_G, error_G = scales_G.copy(), np.full(len(scales_G), np.inf, np.float32)
    for steps in (None, *STEPS):
        if steps is None:
            candidate_G = scales_G
        else:
            candidate_G, _ = storage.scales(peak_G / np.float32(scheme.max_int + steps), scheme.dtype)
        step_G = storage.widen_scales(candidate_G, scheme.dtype) / size_G
        found_G = _errors(turned_SG, step_G, scheme, work_SG, level_SG)
        better_G = found_G < error_G
        np.copyto(best_G, candidate_G, where=better_G)
        np.copyto(error_G, found_G, where=better_G)
    negative_G = storage.narrow(-storage.widen(best_G, scheme.dtype), scheme.dtype)
    return np.where(sign_G < 0, negative_G, best_G)


def _errors(
    turned_SG: np.ndarray, step_G: np.ndarray, scheme: Scheme, work_SG: np.ndarray, level_SG: np.ndarray
) -> np.ndarray:
    """Squared error of each group when its weights are rounded to multiples of ``step_G``; NaN where that is 0."""
    with np.errstate(all="ignore"):
        np.multiply(turned_SG, 1 / step_G, out=work_SG)
        np.rint(work_SG, out=level_SG)
        np.clip(level_SG, np.float32(-scheme.max_int), np.float32(scheme.max_int + 1), out=level_SG)
        np.subtract(work_SG, level_SG, out=work_SG)
        np.multiply(work_SG, work_SG, out=work_SG)
        error_G: np.ndarray = np.add.reduce(work_SG, axis=0)
        error_G *= step_G * step_G
    return error_G
