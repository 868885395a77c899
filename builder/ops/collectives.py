"""Operations around the collectives of several ranks (ranks.py).

Axes: M rows (tokens), H features, V vocabulary, R ranks, F features of fused q, k, v.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te, tirx
from tvm.relax.frontend import nn

from llm_build.ops import emit as op
from llm_build.ops.norms import RMSNorm

COMPUTE = "float32"


@dataclass(frozen=True, slots=True)
class AddLabel(op.Label):
    """``dtype``: of the bias."""

    op: ClassVar[str] = "add"

    width: int
    residual: bool
    bias: bool
    dtype: str


@dataclass(frozen=True, slots=True)
class JoinedLabel(op.Label):
    """``width``: of one rank's columns."""

    op: ClassVar[str] = "joined"

    ranks: int
    width: int


@dataclass(frozen=True, slots=True)
class QKMeansLabel(op.Label):
    """Widths of one rank."""

    op: ClassVar[str] = "qk_means"

    features: int
    q_width: int
    k_width: int


@dataclass(frozen=True, slots=True)
class QKScaledLabel(QKMeansLabel):
    op: ClassVar[str] = "qk_scaled"

    eps: float
    dtype: str
    ranks: int


def _add(label: AddLabel, x_MH: Any, *tensors: Any) -> Any:
    """x (+ bias) (+ residual); tensors: residual, bias."""

    def added(m: Any, h: Any) -> Any:
        value = x_MH[m, h]
        value = value + tirx.Cast(COMPUTE, tensors[-1][h]) if label.bias else value
        return value + tensors[0][m, h] if label.residual else value

    return te.compute(x_MH.shape, added, "sum")


def add(x_MH: nn.Tensor, residual_MH: nn.Tensor | None, bias_H: nn.Tensor | None = None) -> nn.Tensor:
    """x (+ bias) (+ residual): (M, H)."""
    if residual_MH is None and bias_H is None:
        return x_MH
    activations = [x_MH] if residual_MH is None else [x_MH, residual_MH]
    stored, dtype = ([], "float32") if bias_H is None else ([bias_H], bias_H.dtype)
    label = AddLabel(int(x_MH.shape[1]), residual_MH is not None, bias_H is not None, dtype)
    return op.emit(label, _add, activations, stored, x_MH.shape)


def _joined(label: JoinedLabel, x_RV: Any) -> Any:
    ranks, width = label.ranks, label.width
    rows = tirx.indexdiv(x_RV.shape[0], ranks)
    return te.compute((rows, ranks * width), lambda m, v: x_RV[v // width * rows + m, v % width], "joined")


def joined(parts_RV: nn.Tensor, rows: Any, ranks: int, width: int) -> nn.Tensor:
    """Columns of each rank (R * M, V / R), one rank's rows after the other's -> rows of all columns (M, V)."""
    return op.emit(JoinedLabel(ranks, width), _joined, [parts_RV], [], (rows, ranks * width))


def _qk_means(label: QKMeansLabel, qkv_MF: Any) -> Any:
    """The mean of squares of a rank's q features, and of its k features: (M, 2)."""
    q_width, k_width = label.q_width, label.k_width
    rows = qkv_MF.shape[0]

    def squares(start: int, width: int, name: str) -> Any:
        axis = te.reduce_axis((0, width), name)

        def square(m: Any) -> Any:
            return te.sum(qkv_MF[m, start + axis] * qkv_MF[m, start + axis], axis=axis)

        return te.compute((rows,), square, f"{name}_squares")

    q, k = squares(0, q_width, "q"), squares(q_width, k_width, "k")

    def mean(m: Any, part: Any) -> Any:
        return tirx.if_then_else(
            tirx.EQ(part, 0), q[m] / tirx.const(q_width, COMPUTE), k[m] / tirx.const(k_width, COMPUTE)
        )

    return te.compute((rows, 2), mean, "means")


def qk_means(qkv_MF: nn.Tensor, q_width: int, k_width: int) -> nn.Tensor:
    """The means of squares of a rank's q features and of its k features: (M, 2)."""
    label = QKMeansLabel(int(qkv_MF.shape[1]), q_width, k_width)
    return op.emit(label, _qk_means, [qkv_MF], [], (qkv_MF.shape[0], 2))


def _qk_scaled(label: QKScaledLabel, qkv_MF: Any, means_M2: Any, q_weight: Any, k_weight: Any) -> Any:
    """q and k features over the root of the ranks' average of means, times their weights; v features stay."""
    q_end = label.q_width
    k_end = q_end + label.k_width
    ranks, eps = tirx.const(label.ranks, COMPUTE), tirx.const(label.eps, COMPUTE)

    def gain(m: Any, f: Any) -> Any:
        q = tirx.rsqrt(means_M2[m, 0] / ranks + eps) * tirx.Cast(COMPUTE, q_weight[f])
        k = tirx.rsqrt(means_M2[m, 1] / ranks + eps) * tirx.Cast(COMPUTE, k_weight[f - q_end])
        return tirx.if_then_else(f < q_end, q, tirx.if_then_else(f < k_end, k, tirx.const(1, COMPUTE)))

    return te.compute(qkv_MF.shape, lambda m, f: qkv_MF[m, f] * gain(m, f), "normed")


def qk_scaled(qkv_MF: nn.Tensor, means_M2: nn.Tensor, q_norm: RMSNorm, k_norm: RMSNorm, ranks: int) -> nn.Tensor:
    """q and k features over the roots of the ranks' average means (``means_M2``: their sums), times their weights."""
    widths = (int(qkv_MF.shape[1]), q_norm.width, k_norm.width)
    label = QKScaledLabel(*widths, q_norm.eps, q_norm.dtype, ranks)
    weights = [q_norm.weight, k_norm.weight]
    return op.emit(label, _qk_scaled, [qkv_MF, means_M2], weights, qkv_MF.shape)
