"""gptq: round one input after the other, and let the inputs that are still to come make up for the error.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv:2210.17323. The squared error of a linear layer's outputs is a quadratic form in the error of each
row of its weights, with H = 2 X^T X, X (T, in) its inputs. With U the upper Cholesky factor of H^-1 (H^-1 = U^T U;
section 3.3, step 3), rounding input j from w to q moves the inputs after it by

    delta = -(w - q) / U_jj * U_j,j+1:            (equation 2, as algorithm 1 of the paper computes it)

H is damped by ``damping`` times the mean of its diagonal (section 3.3). The updates of a whole group reach the inputs
after it at once (step 2, lazy batch updates). The order of the inputs is the checkpoint's. A group's scale is fixed
when its first input comes up, from its weights as they are moved by then, as mse chooses it.

U^-1 is the reversed Cholesky factor of the reversed H, so H is never inverted. A factor on H changes nothing, so the 2
and the number of tokens are left out.
"""

from __future__ import annotations

import numpy as np

from llm_build.quant import storage
from llm_build.quant.layout import Scheme
from llm_build.quant.methods import Method, mse


def prepare(scheme: Scheme, moment: np.ndarray | None, damping: float) -> Method:
    """The method for a parameter with these second moments; mse where there are none (an embedding has no input)."""
    if moment is None:
        return mse.prepare(scheme, None, damping)
    factor_II = upper_factor(moment, damping)

    def choose(weights_RP: np.ndarray, scales: np.ndarray) -> np.ndarray:
        rows, inputs = len(weights_RP), len(factor_II)
        moved_IR = np.ascontiguousarray(weights_RP[:, :inputs].T)
        found_RG = np.empty((rows, len(scales) // rows), scales.dtype)
        for group, start in enumerate(range(0, inputs, scheme.group_size)):
            some = slice(start, min(start + scheme.group_size, inputs))
            found_RG[:, group] = _scales(moved_IR[some], scheme)
            steps_R = storage.widen(found_RG[:, group], scheme.dtype)
            errors_SR = _round_group(moved_IR[some], factor_II[some, some], steps_R, scheme)
            moved_IR[some.stop :] -= factor_II[some, some.stop :].T @ errors_SR
        weights_RP[:, :inputs] = moved_IR.T
        return found_RG.reshape(-1)

    return choose


def upper_factor(moment_II: np.ndarray, damping: float) -> np.ndarray:
    """U of H^-1 = U^T U, float32, for the damped moment as H. An input that is always zero leaves the weights alone."""
    damped_II = moment_II.astype(np.float64)
    mean = float(np.diag(damped_II).mean()) or 1.0
    damped_II[np.diag_indices_from(damped_II)] += damping * mean
    reverse = slice(None, None, -1)
    root_II = np.linalg.cholesky(damped_II[reverse, reverse])[reverse, reverse]  # H = root root^T, root upper
    factor_II = np.linalg.solve(root_II, np.eye(len(root_II)))
    return np.ascontiguousarray(np.triu(factor_II), dtype=np.float32)


def _scales(weights_SR: np.ndarray, scheme: Scheme) -> np.ndarray:
    peak_R = np.abs(weights_SR).max(axis=0)
    scales_R, _ = storage.scales(peak_R / np.float32(scheme.max_int), scheme.dtype)
    return mse.best_scales(weights_SR, scales_R, scheme)


def _round_group(moved_SR: np.ndarray, factor_SS: np.ndarray, steps_R: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Move the inputs of a group, each by the errors of those before it; returns the errors over U_jj."""
    errors_SR = np.empty_like(moved_SR)
    middle, top = np.float32(scheme.max_int), np.float32((1 << scheme.bits) - 1)
    divisor_R = np.where(steps_R == 0, np.float32(1), steps_R)
    for j in range(len(moved_SR)):
        level_R = np.rint(np.clip(moved_SR[j] / divisor_R + middle, np.float32(0), top))  # as pack will store it
        errors_SR[j] = (moved_SR[j] - (level_R - middle) * steps_R) / factor_SS[j, j]
        moved_SR[j + 1 :] -= factor_SS[j, j + 1 :, None] * errors_SR[j]
    return errors_SR
