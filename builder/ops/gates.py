"""Activations between the layers of a block. Axes: M rows (tokens), I inner features."""

# mypy: disable-error-code="misc"
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te, tirx
from tvm.relax.frontend import nn

from llm_build.ops import emit as op

COMPUTE = "float32"


@dataclass(frozen=True, slots=True)
class GeluLabel(op.Label):
    op: ClassVar[str] = "gelu"

    width: int
    kind: str  # gelu | gelu_tanh


@dataclass(frozen=True, slots=True)
class GateLabel(op.Label):
    """Of rows (gate, up), of ``width`` features each."""

    width: int


@dataclass(frozen=True, slots=True)
class SiluMulLabel(GateLabel):
    op: ClassVar[str] = "silu_mul"


@dataclass(frozen=True, slots=True)
class GeluMulLabel(GateLabel):
    op: ClassVar[str] = "gelu_mul"


ERFC = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)  # of t, t^2, ...; with ERFC_P to 1.5e-7
ERFC_P = 0.3275911  # t = 1 / (1 + ERFC_P * x): Abramowitz and Stegun 1964, 7.1.26
TANH_GELU = (1.5957691216057308, 0.044715)  # 2 * sqrt(2 / pi), and the cubic term


def _gelu(label: GeluLabel, x_MI: Any) -> Any:
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

    return te.compute(x_MI.shape, {"gelu": exact, "gelu_tanh": tanh}[label.kind], "activated")


def gelu(x_MI: nn.Tensor, width: int, kind: str) -> nn.Tensor:
    """(M, I) -> (M, I); ``kind`` gelu or gelu_tanh."""
    return op.emit(GeluLabel(width, kind), _gelu, [x_MI], [], x_MI.shape)


def silu_gate(label: GateLabel, gate_up_MI: Any) -> Any:
    """silu(gate) * up; the gates are the first half of each row."""
    width = label.width

    def value(m: Any, i: Any) -> Any:
        gate = gate_up_MI[m, i]
        return gate / (tirx.const(1, COMPUTE) + tirx.exp(-gate)) * gate_up_MI[m, width + i]

    return te.compute((gate_up_MI.shape[0], width), value, "gated")


def silu_mul(gate_up_MI: nn.Tensor, width: int) -> nn.Tensor:
    """silu(first half) * second half: (M, 2 * width) -> (M, width)."""
    return op.emit(SiluMulLabel(width), silu_gate, [gate_up_MI], [], (gate_up_MI.shape[0], width))


def gelu_gate(label: GateLabel, gate_up_MI: Any) -> Any:
    """gelu in its tanh form (Hendrycks and Gimpel 2016, arXiv:1606.08415): x * sigmoid(2 u), u the tanh's argument."""
    width = label.width

    def value(m: Any, i: Any) -> Any:
        gate = gate_up_MI[m, i]
        cubic = gate + tirx.const(0.044715, COMPUTE) * gate * gate * gate
        twice = tirx.const(2 * math.sqrt(2 / math.pi), COMPUTE) * cubic
        return gate / (tirx.const(1, COMPUTE) + tirx.exp(-twice)) * gate_up_MI[m, width + i]

    return te.compute((gate_up_MI.shape[0], width), value, "gated")


def gelu_mul(gate_up_MI: nn.Tensor, width: int) -> nn.Tensor:
    """gelu(first half) * second half: (M, 2 * width) -> (M, width)."""
    return op.emit(GeluMulLabel(width), gelu_gate, [gate_up_MI], [], (gate_up_MI.shape[0], width))
