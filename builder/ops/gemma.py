"""Operations of the Gemmas. Axes: M rows (tokens), H features, A heads, D features of a head, I inner features."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import te, tirx
from tvm.relax.frontend import nn

from builder.ops import emit as op

COMPUTE = "float32"


def number(value: float) -> Any:
    return tirx.const(value, COMPUTE)


def _norm_add(fields: Mapping[str, Any], x_MH: Any, *tensors: Any) -> Any:
    """x / sqrt(mean(x^2) + eps) * (1 + weight) (+ residual); tensors: residual, weight."""
    width, weight_H = fields["width"], tensors[-1]
    axis = te.reduce_axis((0, width), "h")
    squares_M = te.compute((x_MH.shape[0],), lambda m: te.sum(x_MH[m, axis] * x_MH[m, axis], axis=axis), "squares")

    def value(m: Any, h: Any) -> Any:
        scale = tirx.rsqrt(squares_M[m] / number(width) + number(fields["eps"]))
        normed = x_MH[m, h] * scale * (number(1) + tirx.Cast(COMPUTE, weight_H[h]))
        return normed + tensors[0][m, h] if fields["residual"] else normed

    return te.compute(x_MH.shape, value, "normed")


class Norm(nn.Module):
    """(M, H) float32 -> (M, H) float32: an RMS norm whose weight is kept less one, and what it is added to."""

    def __init__(self, width: int, eps: float, dtype: str) -> None:
        super().__init__()
        self.fields = {"width": width, "eps": eps, "dtype": dtype}
        self.weight = nn.Parameter((width,), dtype)

    def forward(self, x_MH: nn.Tensor, residual_MH: nn.Tensor | None = None) -> nn.Tensor:
        fields = {**self.fields, "residual": residual_MH is not None}
        activations = [x_MH] if residual_MH is None else [x_MH, residual_MH]
        return op.emit("gemma_norm", _norm_add, fields, activations, [self.weight], x_MH.shape)


def _scaled(fields: Mapping[str, Any], x_MH: Any) -> Any:
    return te.compute(x_MH.shape, lambda m, h: x_MH[m, h] * number(fields["factor"]), "scaled")


def scaled(x_MH: nn.Tensor, width: int, factor: float) -> nn.Tensor:
    """x * factor."""
    return op.emit("scaled", _scaled, {"width": width, "factor": factor}, [x_MH], [], x_MH.shape)


def _soft_cap(fields: Mapping[str, Any], x_MH: Any) -> Any:
    cap = number(fields["cap"])
    return te.compute(x_MH.shape, lambda m, h: tirx.tanh(x_MH[m, h] / cap) * cap, "capped")


def soft_cap(x_MH: nn.Tensor, width: int, cap: float) -> nn.Tensor:
    """cap * tanh(x / cap)."""
    return op.emit("soft_cap", _soft_cap, {"width": width, "cap": cap}, [x_MH], [], x_MH.shape)


def _head_norm_rotary(fields: Mapping[str, Any], qkv_MAD: Any, positions_M: Any, *weights_D: Any) -> Any:
    width, half = fields["width"], fields["width"] // 2
    queries, rotated = fields["query_heads"], fields["query_heads"] + fields["key_heads"]
    axis = te.reduce_axis((0, width), "d")
    squares_MA = te.compute(
        qkv_MAD.shape[:2], lambda m, a: te.sum(qkv_MAD[m, a, axis] * qkv_MAD[m, a, axis], axis=axis), "squares"
    )

    def normed(m: Any, a: Any, d: Any) -> Any:
        scale = tirx.rsqrt(squares_MA[m, a] / number(width) + number(fields["eps"]))
        weight = tirx.if_then_else(a < queries, weights_D[0][d], weights_D[1][d])
        return qkv_MAD[m, a, d] * scale * (number(1) + tirx.Cast(COMPUTE, weight))

    def value(m: Any, a: Any, d: Any) -> Any:
        exponent = tirx.Cast(COMPUTE, d % half) * number(-2 / width)
        frequency = tirx.power(number(fields["theta"]), exponent) / number(fields["factor"])
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
        self.fields = {"query_heads": queries, "key_heads": keys, "width": width, "eps": eps, "dtype": dtype}
        self.fields |= {"theta": theta, "factor": factor}

    def forward(self, qkv_MAD: nn.Tensor, positions_M: nn.Tensor, q_D: nn.Tensor, k_D: nn.Tensor) -> nn.Tensor:
        tensors = [qkv_MAD, positions_M]
        return op.emit("head_norm_rotary", _head_norm_rotary, self.fields, tensors, [q_D, k_D], qkv_MAD.shape)


class HeadNorm(nn.Module):
    """The weight of a norm over the features of one head, kept less one."""

    def __init__(self, width: int, dtype: str) -> None:
        super().__init__()
        self.weight = nn.Parameter((width,), dtype)
