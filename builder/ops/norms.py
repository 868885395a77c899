"""Operations that several families share. Axes: M rows (tokens), H features."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import te, tirx
from tvm.relax.frontend import nn

from builder.ops import emit as op

COMPUTE = "float32"


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


def _rms_norm(fields: Mapping[str, Any], x_MH: Any, *tensors: Any) -> Any:
    """x / sqrt(mean(x^2) + eps) * weight (+ residual) (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    weight_H = tensors[-1]
    scale = _inverse_rms(x_MH, 0, 1, fields["width"], fields["eps"], "row")

    def normed(m: Any, h: Any) -> Any:
        value = x_MH[m, h] * scale[m, 0] * tirx.Cast(COMPUTE, weight_H[h])
        return value + tensors[0][m, h] if fields["residual"] else value

    return te.compute(x_MH.shape, normed, "normed")


class RMSNorm(nn.Module):
    """(M, H) float32 -> (M, H) float32, with what is added to it; the weight stays in the storage dtype."""

    def __init__(self, width: int, eps: float, dtype: str) -> None:
        super().__init__()
        self.width, self.eps, self.dtype = width, eps, dtype
        self.weight = nn.Parameter((width,), dtype)

    def forward(self, x_MH: nn.Tensor, residual_MH: nn.Tensor | None = None) -> nn.Tensor:
        activations = [x_MH] if residual_MH is None else [x_MH, residual_MH]
        fields = {"width": self.width, "eps": self.eps, "dtype": self.dtype, "residual": residual_MH is not None}
        return op.emit("rms_norm", _rms_norm, fields, activations, [self.weight], x_MH.shape)


def _qk_norm(fields: Mapping[str, Any], qkv_MF: Any, q_weight: Any, k_weight: Any) -> Any:
    """RMS norm of each run of q and of k features; v features stay."""
    q_width, k_width = fields["q_width"], fields["k_width"]
    q_end = fields["q_runs"] * q_width
    k_end = q_end + fields["k_runs"] * k_width
    q_scale = _inverse_rms(qkv_MF, 0, fields["q_runs"], q_width, fields["eps"], "q")
    k_scale = _inverse_rms(qkv_MF, q_end, fields["k_runs"], k_width, fields["eps"], "k")

    def gain(m: Any, f: Any) -> Any:
        q = q_scale[m, f // q_width] * tirx.Cast(COMPUTE, q_weight[f % q_width])
        k = k_scale[m, (f - q_end) // k_width] * tirx.Cast(COMPUTE, k_weight[(f - q_end) % k_width])
        return tirx.if_then_else(f < q_end, q, tirx.if_then_else(f < k_end, k, tirx.const(1, COMPUTE)))

    return te.compute(qkv_MF.shape, lambda m, f: qkv_MF[m, f] * gain(m, f), "normed")


def qk_norm(qkv_MF: nn.Tensor, q_norm: RMSNorm, q_runs: int, k_norm: RMSNorm, k_runs: int) -> nn.Tensor:
    """Queries and keys of fused q, k, v (M, F) normed in runs of the norms' widths (one head, or all of them)."""
    assert (q_norm.eps, q_norm.dtype) == (k_norm.eps, k_norm.dtype)
    fields = {
        "features": int(qkv_MF.shape[1]), "q_runs": q_runs, "q_width": q_norm.width, "k_runs": k_runs,
        "k_width": k_norm.width, "eps": q_norm.eps, "dtype": q_norm.dtype,
    }  # fmt: skip
    return op.emit("qk_norm", _qk_norm, fields, [qkv_MF], [q_norm.weight, k_norm.weight], qkv_MF.shape)


def _layer_norm(fields: Mapping[str, Any], x_MH: Any, weight_H: Any, bias_H: Any) -> Any:
    """(x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016, arXiv:1607.06450)."""
    rows, width = x_MH.shape[0], tirx.const(fields["width"], COMPUTE)
    first, second = (te.reduce_axis((0, fields["width"]), name) for name in ("h", "i"))
    sums = te.compute((rows,), lambda m: te.sum(x_MH[m, first], axis=first), "sums")
    centered = te.compute(x_MH.shape, lambda m, h: x_MH[m, h] - sums[m] / width, "centered")
    squares = te.compute((rows,), lambda m: te.sum(centered[m, second] * centered[m, second], axis=second), "squares")
    eps = tirx.const(fields["eps"], COMPUTE)

    def normed(m: Any, h: Any) -> Any:
        scaled = centered[m, h] * tirx.rsqrt(squares[m] / width + eps)
        return scaled * tirx.Cast(COMPUTE, weight_H[h]) + tirx.Cast(COMPUTE, bias_H[h])

    return te.compute(x_MH.shape, normed, "normed")


class LayerNorm(nn.Module):
    """(M, H) float32 -> (M, H) float32; weight and bias stay in the storage dtype."""

    def __init__(self, width: int, eps: float, dtype: str) -> None:
        super().__init__()
        self.fields = {"width": width, "eps": eps, "dtype": dtype}
        self.weight = nn.Parameter((width,), dtype)
        self.bias = nn.Parameter((width,), dtype)

    def forward(self, x_MH: nn.Tensor) -> nn.Tensor:
        return op.emit("layer_norm", _layer_norm, self.fields, [x_MH], [self.weight, self.bias], x_MH.shape)


ERFC = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)  # of t, t^2, ...; with ERFC_P to 1.5e-7
ERFC_P = 0.3275911  # t = 1 / (1 + ERFC_P * x): Abramowitz and Stegun 1964, 7.1.26
TANH_GELU = (1.5957691216057308, 0.044715)  # 2 * sqrt(2 / pi), and the cubic term


def _gelu(fields: Mapping[str, Any], x_MI: Any) -> Any:
    """x * Phi(x), or its tanh form (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""
    one = tirx.const(1, COMPUTE)

    def exact(m: Any, i: Any) -> Any:
        x = x_MI[m, i]
        size = tirx.max(x, -x)
        t = one / (one + tirx.const(ERFC_P * 0.5**0.5, COMPUTE) * size)
        series = tirx.const(ERFC[-1], COMPUTE)
        for term in reversed(ERFC[:-1]):
            series = series * t + tirx.const(term, COMPUTE)
        tail = series * t * tirx.exp(x * x * tirx.const(-0.5, COMPUTE)) * tirx.const(0.5, COMPUTE)
        return tirx.max(x, tirx.const(0, COMPUTE)) - size * tail

    def tanh(m: Any, i: Any) -> Any:
        x = x_MI[m, i]
        inner = tirx.const(TANH_GELU[0], COMPUTE) * x * (one + tirx.const(TANH_GELU[1], COMPUTE) * x * x)
        return x / (one + tirx.exp(-inner))

    return te.compute(x_MI.shape, {"gelu": exact, "gelu_tanh": tanh}[fields["kind"]], "activated")


def gelu(x_MI: nn.Tensor, width: int, kind: str) -> nn.Tensor:
    """(M, I) -> (M, I); ``kind`` gelu or gelu_tanh."""
    return op.emit("gelu", _gelu, {"width": width, "kind": kind}, [x_MI], [], x_MI.shape)


def silu_gate(fields: Mapping[str, Any], gate_up_MI: Any) -> Any:
    """silu(gate) * up; the gates are the first half of each row."""
    width = fields["width"]

    def value(m: Any, i: Any) -> Any:
        gate = gate_up_MI[m, i]
        return gate / (tirx.const(1, COMPUTE) + tirx.exp(-gate)) * gate_up_MI[m, width + i]

    return te.compute((gate_up_MI.shape[0], width), value, "gated")


def silu_mul(gate_up_MI: nn.Tensor, width: int) -> nn.Tensor:
    """silu(first half) * second half: (M, 2 * width) -> (M, width)."""
    return op.emit("silu_mul", silu_gate, {"width": width}, [gate_up_MI], [], (gate_up_MI.shape[0], width))


def _last_row(fields: Mapping[str, Any], x_MH: Any) -> Any:
    last = x_MH.shape[0] - 1
    return te.compute((1, fields["width"]), lambda _, h: x_MH[last, h], "last")


def last_row(x_MH: nn.Tensor, width: int) -> nn.Tensor:
    """(M, H) -> (1, H)."""
    return op.emit("last_row", _last_row, {"width": width}, [x_MH], [], (1, width))


def _take_rows(fields: Mapping[str, Any], x_MH: Any, rows_B: Any) -> Any:
    return te.compute((rows_B.shape[0], fields["width"]), lambda b, h: x_MH[rows_B[b], h], "taken")


def take_rows(x_MH: nn.Tensor, rows_B: nn.Tensor, width: int) -> nn.Tensor:
    """(M, H), (B,) int32 -> (B, H)."""
    return op.emit("take_rows", _take_rows, {"width": width}, [x_MH, rows_B], [], (rows_B.shape[0], width))
