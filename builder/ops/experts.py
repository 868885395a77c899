"""Mixtures of experts. Each token goes through ``top`` of E experts; their matrices are stacked in one.

Axes: M rows (tokens), E experts, S slots (the chosen experts of a token), P pairs of token and slot (row-major), N
outputs, K inputs, H hidden. Routes (M, 2 * S) float32 are the numbers of the chosen experts, best first, and
then their shares.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te, tirx
from tvm.relax.frontend import nn

from llm_build.ops import emit as op
from llm_build.ops import load
from llm_build.ops.linear import Linear
from llm_build.ops.ranks import total
from llm_build.ops.weights import StoredWeight, Weight, weight_at
from llm_build.quant.layout import Scheme

COMPUTE = "float32"


@dataclass(frozen=True, slots=True)
class RoutesLabel(op.Label):
    """``whole``: the shares of the ``top`` add up to 1."""

    op: ClassVar[str] = "routes"

    experts: int
    top: int
    whole: bool


@dataclass(frozen=True, slots=True)
class ExpertLinearLabel(op.Label):
    """``outputs`` of one expert; ``shared``: a row of x for all experts of a token, not one for each."""

    op: ClassVar[str] = "expert_linear"

    weight: StoredWeight
    outputs: int
    top: int
    shared: bool


@dataclass(frozen=True, slots=True)
class ExpertSumLabel(op.Label):
    op: ClassVar[str] = "expert_sum"

    top: int
    residual: bool


def _routes(label: RoutesLabel, logits_ME: Any) -> Any:
    """The ``top`` largest logits, and their softmax over all experts or (``whole``: shares add up to 1) over these."""
    experts, top, rows = label.experts, label.top, logits_ME.shape[0]
    zero, axis = tirx.const(0.0, COMPUTE), te.reduce_axis((0, experts), "j")

    def before(m: Any, j: Any, e: Any) -> Any:
        one, other = logits_ME[m, j], logits_ME[m, e]
        first = tirx.Or(one > other, tirx.And(tirx.EQ(one, other), j < e))
        return tirx.Select(first, tirx.const(1, "int32"), tirx.const(0, "int32"))

    rank_ME = te.compute((rows, experts), lambda m, e: te.sum(before(m, axis, e), axis=axis), "rank")

    def chosen(name: str, value: Any) -> Any:
        e = te.reduce_axis((0, experts), name)
        return te.compute(
            (rows, top), lambda m, s: te.sum(tirx.Select(tirx.EQ(rank_ME[m, e], s), value(m, e), zero), axis=e), name
        )

    number_MS = chosen("number", lambda _, e: tirx.Cast(COMPUTE, e))
    logit_MS = chosen("logit", lambda m, e: logits_ME[m, e])
    summed = logit_MS if label.whole else logits_ME
    each = te.reduce_axis((0, top if label.whole else experts), "each")
    total_M = te.compute((rows,), lambda m: te.sum(tirx.exp(summed[m, each] - logit_MS[m, 0]), axis=each), "total")

    def value(m: Any, c: Any) -> Any:
        place = tirx.Select(c < top, c, c - top)
        share = tirx.exp(logit_MS[m, place] - logit_MS[m, 0]) / total_M[m]
        return tirx.Select(c < top, number_MS[m, place], share)

    return te.compute((rows, 2 * top), value, "routes")


class Router(nn.Module):
    """Which experts each token goes to: (M, H) -> routes. The matrix for it is not quantized."""

    def __init__(self, experts: int, top: int, hidden: int, scheme: Scheme, whole: bool = True) -> None:
        super().__init__()
        self.label = RoutesLabel(experts, top, whole)
        self.gate = Linear(experts, hidden, scheme, quantize=False)

    def routes(self, x_MH: nn.Tensor) -> nn.Tensor:
        shape = (x_MH.shape[0], 2 * self.label.top)
        return op.emit(self.label, _routes, [self.gate(x_MH)], [], shape)


def _expert_linear(label: ExpertLinearLabel, x_K: Any, routes: Any, *stored: Any) -> Any:
    """y[p] = x[row of p] @ weight of its expert.T"""
    top, outputs, inputs = label.top, label.outputs, label.weight.k
    pairs = x_K.shape[0] * top if label.shared else x_K.shape[0]
    axis = te.reduce_axis((0, inputs), "k")

    def product(p: Any, n: Any) -> Any:
        expert = tirx.Cast("int64", routes[p // top, p % top])
        row = p // top if label.shared else p
        return te.sum(x_K[row, axis] * weight_at(label.weight, stored, expert * outputs + n, axis), axis=axis)

    return te.compute((pairs, outputs), product, "product")


class ExpertLinear(Weight):
    """The matrices (N, K) of all experts, one under the other; a row of x for each token (``shared``) or each pair."""

    def __init__(self, experts: int, outputs: int, inputs: int, top: int, shared: bool, scheme: Scheme) -> None:
        super().__init__(experts * outputs, inputs, scheme, True)
        self.outputs_of_one, self.top, self.shared = outputs, top, shared

    def forward(self, x_K: nn.Tensor, routes: nn.Tensor) -> nn.Tensor:
        label = ExpertLinearLabel(self.storage, self.outputs_of_one, self.top, self.shared)
        pairs = x_K.shape[0] * self.top if self.shared else x_K.shape[0]
        return op.emit(label, _expert_linear, [x_K, routes], self.tensors(), (pairs, self.outputs_of_one))


def _expert_sum(label: ExpertSumLabel, x_PH: Any, routes: Any, *tensors: Any) -> Any:
    top, shape = label.top, tensors[0].shape if label.residual else (routes.shape[0], x_PH.shape[1])
    slot = te.reduce_axis((0, top), "slot")
    sums = te.compute(shape, lambda m, h: te.sum(x_PH[m * top + slot, h] * routes[m, top + slot], axis=slot), "mixed")
    if not label.residual:
        return sums
    return te.compute(shape, lambda m, h: tensors[0][m, h] + sums[m, h], "sum")


def expert_sum(x_PH: nn.Tensor, routes: nn.Tensor, residual_MH: nn.Tensor, top: int, ranks: int) -> nn.Tensor:
    """residual + what the experts of each token say, by their shares: (M, H)."""
    if ranks == 1:
        label = ExpertSumLabel(top, residual=True)
        return op.emit(label, _expert_sum, [x_PH, routes, residual_MH], [], residual_MH.shape)
    part_MH = op.emit(ExpertSumLabel(top, residual=False), _expert_sum, [x_PH, routes], [], residual_MH.shape)
    summed_MH: nn.Tensor = load("collectives").add(total(part_MH, ranks), residual_MH)
    return summed_MH
