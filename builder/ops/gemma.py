"""Operations of the Gemmas. Axes: M rows (tokens), H features, A heads, D features of a head, I inner features."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te, tirx
from tvm.relax.frontend import nn

from llm_build.ops import emit as op
from llm_build.ops.norms import RMSNormLabel

COMPUTE = "float32"


@dataclass(frozen=True, slots=True)
class GemmaNormLabel(RMSNormLabel):
    op: ClassVar[str] = "gemma_norm"


@dataclass(frozen=True, slots=True)
class ScaledLabel(op.Label):
    op: ClassVar[str] = "scaled"

    width: int
    factor: float


@dataclass(frozen=True, slots=True)
class SoftCapLabel(op.Label):
    op: ClassVar[str] = "soft_cap"

    width: int
    cap: float


@dataclass(frozen=True, slots=True)
class HeadNormRotaryLabel(op.Label):
    op: ClassVar[str] = "head_norm_rotary"

    query_heads: int
    key_heads: int
    width: int
    eps: float
    dtype: str
    theta: float
    factor: float


def number(value: float) -> Any:
    return tirx.const(value, COMPUTE)


def _norm_add(label: GemmaNormLabel, x_MH: Any, *tensors: Any) -> Any:
    """x / sqrt(mean(x^2) + eps) * (1 + weight) (+ residual); tensors: residual, weight."""
    width, weight_H = label.width, tensors[-1]
    axis = te.reduce_axis((0, width), "h")
    squares_M = te.compute((x_MH.shape[0],), lambda m: te.sum(x_MH[m, axis] * x_MH[m, axis], axis=axis), "squares")

    def value(m: Any, h: Any) -> Any:
        scale = tirx.rsqrt(squares_M[m] / number(width) + number(label.eps))
        normed = x_MH[m, h] * scale * (number(1) + tirx.Cast(COMPUTE, weight_H[h]))
        return normed + tensors[0][m, h] if label.residual else normed

    return te.compute(x_MH.shape, value, "normed")


class Norm(nn.Module):
    """(M, H) float32 -> (M, H) float32: an RMS norm whose weight is kept less one, and what it is added to."""

    def __init__(self, width: int, eps: float, dtype: str) -> None:
        super().__init__()
        self.width, self.eps, self.dtype = width, eps, dtype
        self.weight = nn.Parameter((width,), dtype)

    def forward(self, x_MH: nn.Tensor, residual_MH: nn.Tensor | None = None) -> nn.Tensor:
        label = GemmaNormLabel(self.width, self.eps, self.dtype, residual_MH is not None)
        activations = [x_MH] if residual_MH is None else [x_MH, residual_MH]
        return op.emit(label, _norm_add, activations, [self.weight], x_MH.shape)


def _scaled(label: ScaledLabel, x_MH: Any) -> Any:
    return te.compute(x_MH.shape, lambda m, h: x_MH[m, h] * number(label.factor), "scaled")


def scaled(x_MH: nn.Tensor, width: int, factor: float) -> nn.Tensor:
    """x * factor."""
    return op.emit(ScaledLabel(width, factor), _scaled, [x_MH], [], x_MH.shape)


def _soft_cap(label: SoftCapLabel, x_MH: Any) -> Any:
    cap = number(label.cap)
    return te.compute(x_MH.shape, lambda m, h: tirx.tanh(x_MH[m, h] / cap) * cap, "capped")


def soft_cap(x_MH: nn.Tensor, width: int, cap: float) -> nn.Tensor:
    """cap * tanh(x / cap)."""
    return op.emit(SoftCapLabel(width, cap), _soft_cap, [x_MH], [], x_MH.shape)


def _head_norm_rotary(label: HeadNormRotaryLabel, qkv_MAD: Any, positions_M: Any, *weights_D: Any) -> Any:
    width, half = label.width, label.width // 2
    queries, rotated = label.query_heads, label.query_heads + label.key_heads
    axis = te.reduce_axis((0, width), "d")
    squares_MA = te.compute(
        qkv_MAD.shape[:2], lambda m, a: te.sum(qkv_MAD[m, a, axis] * qkv_MAD[m, a, axis], axis=axis), "squares"
    )

    def normed(m: Any, a: Any, d: Any) -> Any:
        scale = tirx.rsqrt(squares_MA[m, a] / number(width) + number(label.eps))
        weight = tirx.if_then_else(a < queries, weights_D[0][d], weights_D[1][d])
        return qkv_MAD[m, a, d] * scale * (number(1) + tirx.Cast(COMPUTE, weight))

    def value(m: Any, a: Any, d: Any) -> Any:
        exponent = tirx.Cast(COMPUTE, d % half) * number(-2 / width)
        frequency = tirx.power(number(label.theta), exponent) / number(label.factor)
        angle = tirx.Cast(COMPUTE, positions_M[m]) * frequency
        other = tirx.if_then_else(d < half, -normed(m, a, (d + half) % width), normed(m, a, (d + half) % width))
        turned = normed(m, a, d) * tirx.cos(angle) + other * tirx.sin(angle)
        return tirx.if_then_else(a < rotated, turned, qkv_MAD[m, a, d])

    return te.compute(qkv_MAD.shape, value, "turned")


class HeadNormRotary(nn.Module):
    """Fused heads (M, query + 2 * key heads, D): queries and keys normed per head, each with a weight of its own, and
    rotated to their positions (M,) with frequencies theta^(-2i / D) / factor; values as they are."""

    def __init__(self, heads: tuple[int, int, int], eps: float, dtype: str, theta: float, factor: float) -> None:
        super().__init__()
        queries, keys, width = heads
        self.label = HeadNormRotaryLabel(queries, keys, width, eps, dtype, theta, factor)

    def forward(self, qkv_MAD: nn.Tensor, positions_M: nn.Tensor, q_D: nn.Tensor, k_D: nn.Tensor) -> nn.Tensor:
        tensors = [qkv_MAD, positions_M]
        return op.emit(self.label, _head_norm_rotary, tensors, [q_D, k_D], qkv_MAD.shape)


class HeadNorm(nn.Module):
    """The weight of a norm over the features of one head, kept less one."""

    def __init__(self, width: int, dtype: str) -> None:
        super().__init__()
        self.weight = nn.Parameter((width,), dtype)
