"""Operations that several families share. Axes: M rows (tokens), H features."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import te, tirx
from tvm.relax.frontend import nn

from builder.lowering import op

COMPUTE = "float32"


def _rms_norm(fields: Mapping[str, Any], x_MH: Any, weight_H: Any) -> Any:
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    width = fields["width"]
    axis = te.reduce_axis((0, width), "h")
    squares_M = te.compute((x_MH.shape[0],), lambda m: te.sum(x_MH[m, axis] * x_MH[m, axis], axis=axis), "squares")
    eps = tirx.const(fields["eps"], COMPUTE)
    scale_M = te.compute(
        (x_MH.shape[0],), lambda m: tirx.rsqrt(squares_M[m] / tirx.const(width, COMPUTE) + eps), "scale"
    )
    return te.compute(x_MH.shape, lambda m, h: x_MH[m, h] * scale_M[m] * tirx.Cast(COMPUTE, weight_H[h]), "normed")


class RMSNorm(nn.Module):
    """(M, H) float32 -> (M, H) float32; the weight stays in the storage dtype."""

    def __init__(self, width: int, eps: float, dtype: str) -> None:
        super().__init__()
        self.fields = {"width": width, "eps": eps, "dtype": dtype}
        self.weight = nn.Parameter((width,), dtype)

    def forward(self, x_MH: nn.Tensor) -> nn.Tensor:
        return op.emit("rms_norm", _rms_norm, self.fields, [x_MH], [self.weight], x_MH.shape)


def _silu_mul(fields: Mapping[str, Any], gate_up_MI: Any) -> Any:
    width = fields["width"]

    def value(m: Any, i: Any) -> Any:
        gate = gate_up_MI[m, i]
        return gate / (tirx.const(1, COMPUTE) + tirx.exp(-gate)) * gate_up_MI[m, width + i]

    return te.compute((gate_up_MI.shape[0], width), value, "gated")


def silu_mul(gate_up_MI: nn.Tensor, width: int) -> nn.Tensor:
    """silu(first half) * second half: (M, 2 * width) -> (M, width)."""
    return op.emit("silu_mul", _silu_mul, {"width": width}, [gate_up_MI], [], (gate_up_MI.shape[0], width))


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
