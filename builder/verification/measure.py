"""Figures that compare logits. B positions, V vocabulary; everything in float64 over blocks of rows.

Errors are given in units of the reference's *spread*: the standard deviation of its logits over the vocabulary, pooled
over the positions (root of the mean variance). Softmax ignores what all logits of a position have in common, so the
spread within a position is the scale on which a difference matters. It is 5 to 10 times smaller than the distance from
the largest to the smallest logit, so a limit stated for that distance holds the more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

ROWS_BYTES = 32 << 20  # of float64 worked on at a time
CLOSE_NATS = 0.5  # two tokens whose logits differ by no more are about as likely: a factor of 1.6


@dataclass(frozen=True, slots=True)
class Errors:
    """Largest and root mean square difference in units of the spread; ``worst`` is the row of the largest."""

    max_error: float
    rms_error: float
    worst: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """``kl``: mean over positions of KL(reference || built) in nats, ``kl_p99`` its 99th percentile, ``worst`` the row
    of the largest; ``top1``: share of positions where both have the same largest logit; ``top1_close``: the same, but
    where the reference itself hardly prefers one (within CLOSE_NATS) either counts. A model that was never trained
    prefers nothing, and every rounding turns its choice."""

    kl: float
    kl_p99: float
    top1: float
    top1_close: float
    worst: int


def spread(logits_BV: np.ndarray) -> float:
    """Pooled standard deviation over the vocabulary."""
    variances = [block.var(axis=1) for (block,) in blocks(logits_BV)]
    return float(np.sqrt(np.concatenate(variances).mean()))


def errors(reference_BV: np.ndarray, built_BV: np.ndarray, unit: float) -> Errors:
    """Compare two sets of finite logits; ``unit`` is the spread of the reference."""
    assert reference_BV.shape == built_BV.shape, (reference_BV.shape, built_BV.shape)
    largest, squares = [], []
    for reference, built in blocks(reference_BV, built_BV):
        error = np.abs(reference - built)
        largest.append(error.max(axis=1))
        squares.append((error * error).mean(axis=1))
    largest_B = np.concatenate(largest)
    rms = float(np.sqrt(np.concatenate(squares).mean()))
    return Errors(float(largest_B.max()) / unit, rms / unit, int(largest_B.argmax()))


def divergence(reference_BV: np.ndarray, built_BV: np.ndarray) -> Divergence:
    """Compare what two sets of finite logits predict."""
    kl, same, close = [], [], []
    for reference, built in blocks(reference_BV, built_BV):
        log_p, log_q = log_softmax(reference), log_softmax(built)
        kl.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
        chosen = built.argmax(axis=1)
        same.append(reference.argmax(axis=1) == chosen)
        close.append(reference.max(axis=1) - reference[np.arange(len(chosen)), chosen] <= CLOSE_NATS)
    kl_B = np.concatenate(kl)
    top1, top1_close = (float(np.concatenate(flags).mean()) for flags in (same, close))
    return Divergence(float(kl_B.mean()), float(np.quantile(kl_B, 0.99)), top1, top1_close, int(kl_B.argmax()))


def nll(logits_NWV: np.ndarray, tokens_NW: np.ndarray) -> np.ndarray:
    """Negative log-likelihood in nats of each token but the first of a window, float64 [N, W - 1]."""
    count, window, vocab_size = logits_NWV.shape
    flat_BV = logits_NWV[:, :-1].reshape(-1, vocab_size)
    next_B = tokens_NW[:, 1:].reshape(-1)
    parts, row = [], 0
    for (block,) in blocks(flat_BV):
        targets = next_B[row : row + len(block)]
        parts.append(-log_softmax(block)[np.arange(len(block)), targets])
        row += len(block)
    return np.concatenate(parts).reshape(count, window - 1)


def perplexity(nll_NW: np.ndarray) -> float:
    """exp of the mean negative log-likelihood."""
    return float(np.exp(nll_NW.mean()))


def context_free(original_NWV: np.ndarray, tokens_NW: np.ndarray) -> dict[str, float]:
    """A model that knows no context, and says at every position what the original says on average: its "kl" from the
    original (mean, nats) and its "perplexity" on the tokens."""
    flat_BV = original_NWV.reshape(-1, original_NWV.shape[2])
    mean_V = np.sum([np.exp(log_softmax(block)).sum(axis=0) for (block,) in blocks(flat_BV)], axis=0) / len(flat_BV)
    log_mean_V = np.log(np.maximum(mean_V, np.finfo(np.float64).tiny))
    kl = 0.0
    for (block,) in blocks(flat_BV):
        log_p = log_softmax(block)
        kl += float((np.exp(log_p) * (log_p - log_mean_V)).sum())
    return {"kl": kl / len(flat_BV), "perplexity": float(np.exp(-log_mean_V[tokens_NW[:, 1:]].mean()))}


def log_softmax(logits_BV: np.ndarray) -> np.ndarray:
    shifted = logits_BV - logits_BV.max(axis=1, keepdims=True)
    total: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return total


def blocks(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """The same rows of each array in float64, a few at a time."""
    rows = max(1, ROWS_BYTES // (8 * arrays[0].shape[1]))
    for start in range(0, len(arrays[0]), rows):
        yield tuple(array[start : start + rows].astype(np.float64) for array in arrays)
