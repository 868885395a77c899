"""Inputs of layers, rounded to bytes, and products of them with packed weights (see quant/layout.py).

Axes: M rows (tokens), K inputs, N outputs, W words of four codes, lowest byte first; what fills the last word is 0.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te, tirx
from tvm.relax.frontend import nn

from llm_build.ops import emit as op
from llm_build.ops.byte_codes import PER_WORD, byte_of, code_at, float8, int8
from llm_build.ops.linear import LinearLabel, split, with_epilogue
from llm_build.quant.layout import BYTE_LARGEST

COMPUTE = "float32"


@dataclass(frozen=True, slots=True)
class RowScaleLabel(op.Label):
    op: ClassVar[str] = "row_scale"

    k: int
    activation: str  # int8 | e4m3 | e5m2


@dataclass(frozen=True, slots=True)
class RoundedLabel(op.Label):
    op: ClassVar[str] = "rounded"

    k: int
    activation: str


@dataclass(frozen=True, slots=True)
class RoundedLinearLabel(LinearLabel):
    op: ClassVar[str] = "rounded_linear"

    activation: str = ""


def _row_scale(label: RowScaleLabel, x_MK: Any) -> Any:
    """max |x| of each row over the largest code."""
    axis = te.reduce_axis((0, label.k), "k")
    largest_M = te.compute((x_MK.shape[0],), lambda m: te.max(tirx.abs(x_MK[m, axis]), axis=axis), "largest")
    most = tirx.const(BYTE_LARGEST[label.activation], COMPUTE)
    return te.compute((x_MK.shape[0], 1), lambda m, _: largest_M[m] / most, "row_scale")


def _rounded(label: RoundedLabel, x_MK: Any, scale_M1: Any) -> Any:
    """The codes of x / scale, half to even, none beyond the largest; of a row whose scale is 0: zeros."""
    inputs, zero, one = label.k, tirx.const(0.0, COMPUTE), tirx.const(1.0, COMPUTE)

    def code(m: Any, k: Any) -> Any:
        scale = scale_M1[m, 0]
        dead = tirx.EQ(scale, zero)
        ratio = tirx.Select(dead, zero, x_MK[m, k] / tirx.Select(dead, one, scale))
        return byte_of(ratio, label.activation)

    code_MK = te.compute(x_MK.shape, code, "code")

    def word(m: Any, w: Any) -> Any:
        value = tirx.const(0, "uint32")
        for place in range(PER_WORD):
            k = w * PER_WORD + place
            byte = tirx.if_then_else(k < inputs, code_MK[m, k], tirx.const(0, "uint32"))
            value = tirx.bitwise_or(value, tirx.shift_left(byte, tirx.const(8 * place, "uint32")))
        return value

    return te.compute((x_MK.shape[0], -(-inputs // PER_WORD)), word, "rounded")


def rounded(x_MK: nn.Tensor, inputs: int, activation: str, ranks: int = 1) -> list[nn.Tensor]:
    """x (M, K) float32 -> [codes (M, W) uint32, scales (M, 1) float32]. Of several ranks each has a part of the rows,
    and they agree on the scales."""
    scale_M1 = op.emit(RowScaleLabel(inputs, activation), _row_scale, [x_MK], [], (x_MK.shape[0], 1))
    scale_M1 = nn.op.ccl_allreduce(scale_M1, "max") if ranks > 1 else scale_M1
    shape = (x_MK.shape[0], -(-inputs // PER_WORD))
    codes_MW = op.emit(RoundedLabel(inputs, activation), _rounded, [x_MK, scale_M1], [], shape, "uint32")
    return [codes_MW, scale_M1]


def _rounded_product(label: RoundedLinearLabel, codes_MW: Any, scale_M1: Any, q_weight: Any, q_scale: Any) -> Any:
    """The sum of code * code, in int32 or (8-bit floats) float32, times the row's scale, times the weight's."""
    kind, outputs = label.weight.kind, label.weight.n
    axis, whole = te.reduce_axis((0, label.weight.k), "k"), label.weight.scale_per == "tensor"

    def value(words: Any, row: Any, k: Any) -> Any:
        code = code_at(words, row, k)
        return int8(code) if kind == "int8" else float8(code, kind)

    sum_MN = te.compute(
        (codes_MW.shape[0], outputs),
        lambda m, n: te.sum(value(codes_MW, m, axis) * value(q_weight, n, axis), axis=axis),
        "sum",
    )
    return te.compute(
        sum_MN.shape,
        lambda m, n: tirx.Cast(COMPUTE, sum_MN[m, n]) * scale_M1[m, 0] * q_scale[0 if whole else n, 0],
        "product",
    )


def rounded_product(label: RoundedLinearLabel, codes_MW: Any, scale_M1: Any, *tensors: Any) -> Any:
    """As linear.product, of the codes of x and the scales of their rows."""
    stored, residual_MN, bias_N = split(label, tensors)
    return with_epilogue(label, _rounded_product(label, codes_MW, scale_M1, *stored), residual_MN, bias_N)


def project(
    linear: LinearLabel, activation: str, x_MK: nn.Tensor, added: Sequence[nn.Tensor], stored: Sequence[nn.Tensor]
) -> nn.Tensor:
    """The rounding of x and the product, for linear.project. Its function is called as that of other products."""
    weight = linear.weight
    label = RoundedLinearLabel(weight, linear.bias, linear.residual, linear.ranks, activation=activation)
    activations = [*rounded(x_MK, weight.k, activation, linear.ranks), *added]
    return op.emit(label, rounded_product, activations, stored, (x_MK.shape[0], weight.n), function="linear")
