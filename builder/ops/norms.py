"""Norms that several families share. Axes: M rows (tokens), H features."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te, tirx
from tvm.relax.frontend import nn

from llm_build.ops import emit as op
from llm_build.ops import load
from llm_build.ops.ranks import total

COMPUTE = "float32"


@dataclass(frozen=True, slots=True)
class RMSNormLabel(op.Label):
    """``dtype``: of the weight, here and below."""

    op: ClassVar[str] = "rms_norm"

    width: int
    eps: float
    dtype: str
    residual: bool


@dataclass(frozen=True, slots=True)
class QKNormLabel(op.Label):
    """``features`` of a row: ``q_runs`` of q_width, ``k_runs`` of k_width, and those of v."""

    op: ClassVar[str] = "qk_norm"

    features: int
    q_runs: int
    q_width: int
    k_runs: int
    k_width: int
    eps: float
    dtype: str


@dataclass(frozen=True, slots=True)
class LayerNormLabel(op.Label):
    op: ClassVar[str] = "layer_norm"

    width: int
    eps: float
    dtype: str


def _inverse_rms(x_MH: Any, start: int, count: int, width: int, eps: float, name: str) -> Any:
    """1 / sqrt(mean(x^2) + eps) of ``count`` runs of ``width`` features from ``start``: (M, count)."""
    axis = te.reduce_axis((0, width), "h")

    def square(m: Any, run: Any) -> Any:
        value = x_MH[m, start + run * width + axis]
        return te.sum(value * value, axis=axis)

    squares = te.compute((x_MH.shape[0], count), square, f"{name}_squares")
    mean = tirx.const(width, COMPUTE)
    return te.compute(
        (x_MH.shape[0], count),
        lambda m, run: tirx.rsqrt(squares[m, run] / mean + tirx.const(eps, COMPUTE)),
        f"{name}_scale",
    )


def _rms_norm(label: RMSNormLabel, x_MH: Any, *tensors: Any) -> Any:
    """x / sqrt(mean(x^2) + eps) * weight (+ residual) (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    weight_H = tensors[-1]
    scale = _inverse_rms(x_MH, 0, 1, label.width, label.eps, "row")

    def normed(m: Any, h: Any) -> Any:
        value = x_MH[m, h] * scale[m, 0] * tirx.Cast(COMPUTE, weight_H[h])
        return value + tensors[0][m, h] if label.residual else value

    return te.compute(x_MH.shape, normed, "normed")


class RMSNorm(nn.Module):
    """(M, H) float32 -> (M, H) float32, with what is added to it; the weight stays in the storage dtype."""

    def __init__(self, width: int, eps: float, dtype: str) -> None:
        super().__init__()
        self.width, self.eps, self.dtype = width, eps, dtype
        self.weight = nn.Parameter((width,), dtype)

    def forward(self, x_MH: nn.Tensor, residual_MH: nn.Tensor | None = None) -> nn.Tensor:
        activations = [x_MH] if residual_MH is None else [x_MH, residual_MH]
        label = RMSNormLabel(self.width, self.eps, self.dtype, residual_MH is not None)
        return op.emit(label, _rms_norm, activations, [self.weight], x_MH.shape)


def _qk_norm(label: QKNormLabel, qkv_MF: Any, q_weight: Any, k_weight: Any) -> Any:
    """RMS norm of each run of q and of k features; v features stay."""
    q_width, k_width = label.q_width, label.k_width
    q_end = label.q_runs * q_width
    k_end = q_end + label.k_runs * k_width
    q_scale = _inverse_rms(qkv_MF, 0, label.q_runs, q_width, label.eps, "q")
    k_scale = _inverse_rms(qkv_MF, q_end, label.k_runs, k_width, label.eps, "k")

    def gain(m: Any, f: Any) -> Any:
        q = q_scale[m, f // q_width] * tirx.Cast(COMPUTE, q_weight[f % q_width])
        k = k_scale[m, (f - q_end) // k_width] * tirx.Cast(COMPUTE, k_weight[(f - q_end) % k_width])
        return tirx.if_then_else(f < q_end, q, tirx.if_then_else(f < k_end, k, tirx.const(1, COMPUTE)))

    return te.compute(qkv_MF.shape, lambda m, f: qkv_MF[m, f] * gain(m, f), "normed")


def qk_norm(qkv_MF: nn.Tensor, q_norm: RMSNorm, q_runs: int, k_norm: RMSNorm, k_runs: int) -> nn.Tensor:
    """Queries and keys of fused q, k, v (M, F) normed in runs of the norms' widths (one head, or all of them)."""
    assert (q_norm.eps, q_norm.dtype) == (k_norm.eps, k_norm.dtype)
    label = QKNormLabel(int(qkv_MF.shape[1]), q_runs, q_norm.width, k_runs, k_norm.width, q_norm.eps, q_norm.dtype)
    return op.emit(label, _qk_norm, [qkv_MF], [q_norm.weight, k_norm.weight], qkv_MF.shape)


def qk_norm_over(qkv_MF: nn.Tensor, q_norm: RMSNorm, k_norm: RMSNorm, ranks: int) -> nn.Tensor:
    """All queries and all keys of a token normed as one vector each, whose features all ranks have their shares of.
    Each has as many, and key heads that several have count as often for all: the mean is that of the ranks' means."""
    if ranks == 1:
        return qk_norm(qkv_MF, q_norm, 1, k_norm, 1)
    collectives = load("collectives")
    means_M2 = total(collectives.qk_means(qkv_MF, q_norm.width, k_norm.width), ranks)
    normed_MF: nn.Tensor = collectives.qk_scaled(qkv_MF, means_M2, q_norm, k_norm, ranks)
    return normed_MF


def _layer_norm(label: LayerNormLabel, x_MH: Any, weight_H: Any, bias_H: Any) -> Any:
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016, arXiv:1607.06450)."""
    rows, width = x_MH.shape[0], tirx.const(label.width, COMPUTE)
    first, second = (te.reduce_axis((0, label.width), name) for name in ("h", "i"))
    sums = te.compute((rows,), lambda m: te.sum(x_MH[m, first], axis=first), "sums")
    centered = te.compute(x_MH.shape, lambda m, h: x_MH[m, h] - sums[m] / width, "centered")
    squares = te.compute((rows,), lambda m: te.sum(centered[m, second] * centered[m, second], axis=second), "squares")
    eps = tirx.const(label.eps, COMPUTE)

    def normed(m: Any, h: Any) -> Any:
        scaled = centered[m, h] * tirx.rsqrt(squares[m] / width + eps)
        return scaled * tirx.Cast(COMPUTE, weight_H[h]) + tirx.Cast(COMPUTE, bias_H[h])

    return te.compute(x_MH.shape, normed, "normed")


class LayerNorm(nn.Module):
    """(M, H) float32 -> (M, H) float32; weight and bias stay in the storage dtype."""

    def __init__(self, width: int, eps: float, dtype: str) -> None:
        super().__init__()
        self.label = LayerNormLabel(width, eps, dtype)
        self.weight = nn.Parameter((width,), dtype)
        self.bias = nn.Parameter((width,), dtype)

    def forward(self, x_MH: nn.Tensor) -> nn.Tensor:
        return op.emit(self.label, _layer_norm, [x_MH], [self.weight, self.bias], x_MH.shape)
