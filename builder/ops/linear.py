"""Linear layers: y = x @ weight.T (+ bias) (+ residual).

Axes: M rows (tokens), N outputs, K inputs.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te, tirx
from tvm.relax.frontend import nn

from llm_build.ops import emit as op
from llm_build.ops import load
from llm_build.ops.weights import StoredWeight, Weight, weight_at
from llm_build.quant.layout import Scheme

COMPUTE = "float32"


@dataclass(frozen=True, slots=True)
class LinearLabel(op.Label):
    """``ranks``: that add up their products; each adds its share of bias and residual. ``sent``: to the other ranks, as
    it is made (lowering/passes/fuse_allreduce_rmsnorm.py)."""

    op: ClassVar[str] = "linear"

    weight: StoredWeight
    bias: bool
    residual: bool
    ranks: int = 1
    sent: bool = False


def product(label: LinearLabel, x_MK: Any, *tensors: Any) -> Any:
    """y = x @ weight.T (+ bias) (+ residual); tensors: residual, weight (one or more tensors), bias."""
    stored, residual_MN, bias_N = split(label, tensors)
    rows, inputs, outputs = x_MK.shape[0], label.weight.k, label.weight.n
    axis = te.reduce_axis((0, inputs), "k")
    weight_NK = te.compute((outputs, inputs), lambda n, k: weight_at(label.weight, stored, n, k), "weight")
    product_MN = te.compute(
        (rows, outputs), lambda m, n: te.sum(x_MK[m, axis] * weight_NK[n, axis], axis=axis), "product"
    )
    return with_epilogue(label, product_MN, residual_MN, bias_N)


def split(label: LinearLabel, tensors: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any, Any]:
    """(residual), weight, (bias) -> the weight's tensors, residual or None, bias or None."""
    rest = list(tensors)
    residual = rest.pop(0) if label.residual else None
    bias = rest.pop() if label.bias else None
    return tuple(rest), residual, bias


def with_epilogue(label: LinearLabel, product_MN: Any, residual_MN: Any, bias_N: Any) -> Any:
    """product (+ bias) (+ residual); of several ranks each adds its share of both."""
    if bias_N is None and residual_MN is None:
        return product_MN

    share = tirx.const(1 / label.ranks, COMPUTE) if label.ranks > 1 else None

    def part(value: Any) -> Any:
        return value if share is None else value * share

    def added(m: Any, n: Any) -> Any:
        value = product_MN[m, n]
        value = value if bias_N is None else value + part(tirx.Cast(COMPUTE, bias_N[n]))
        return value if residual_MN is None else value + part(residual_MN[m, n])

    return te.compute(product_MN.shape, added, "sum")


class Linear(Weight):
    """y = x @ weight.T (+ bias) (+ residual); x (M, K) float32, y (M, N) float32."""

    def __init__(self, outputs: int, inputs: int, scheme: Scheme, bias: bool = False, quantize: bool = True) -> None:
        super().__init__(outputs, inputs, scheme, quantize)
        self.bias = nn.Parameter((outputs,), scheme.dtype) if bias else None

    def forward(self, x_MK: nn.Tensor, residual_MN: nn.Tensor | None = None) -> nn.Tensor:
        return project(self, x_MK, self.bias, residual_MN)


def project(
    weight: Weight, x_MK: nn.Tensor, bias: nn.Tensor | None, residual_MN: nn.Tensor | None, ranks: int = 1
) -> nn.Tensor:
    """x @ weight.T with what is added to it, as one operation. ``ranks``: that have the columns of x between them; each
    adds its share of bias and residual (for 2, 4 or 8 ranks that is exact), so that the library is the same for all."""
    label = LinearLabel(weight.storage, bias is not None, residual_MN is not None, ranks)
    added = [] if residual_MN is None else [residual_MN]
    stored = weight.tensors() if bias is None else [*weight.tensors(), bias]
    if weight.activation:
        projected: nn.Tensor = load("rounded_inputs").project(label, weight.activation, x_MK, added, stored)
        return projected
    return op.emit(label, product, [x_MK, *added], stored, (x_MK.shape[0], label.weight.n))
