"""Mixtures of experts. Each token goes through ``top`` of E experts; their matrices are stacked in one.

Axes: M rows (tokens), E experts, S slots (the chosen experts of a token), P pairs of token and slot (row-major), N
outputs, K inputs, H hidden. Routes (M, 2 * S) float32 are the numbers of the chosen experts, best first, and
then their shares.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import te, tirx
from tvm.relax.frontend import nn

from builder.ops import emit as op
from builder.ops import load
from builder.ops.linear import Linear
from builder.ops.ranks import total
from builder.ops.weights import Weight, weight_at
from builder.quant.layout import Scheme

COMPUTE = "float32"


def _routes(fields: Mapping[str, Any], logits_ME: Any) -> Any:
    """The ``top`` largest logits, and their softmax over all experts or (``whole``: shares add up to 1) over these."""
    experts, top, rows = fields["experts"], fields["top"], logits_ME.shape[0]
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
    summed = logit_MS if fields["whole"] else logits_ME
    each = te.reduce_axis((0, top if fields["whole"] else experts), "each")
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
        self.fields = {"experts": experts, "top": top, "whole": whole}
        self.gate = Linear(experts, hidden, scheme, quantize=False)

    def routes(self, x_MH: nn.Tensor) -> nn.Tensor:
        shape = (x_MH.shape[0], 2 * self.fields["top"])
        return op.emit("routes", _routes, self.fields, [self.gate(x_MH)], [], shape)


def _expert_linear(fields: Mapping[str, Any], x_K: Any, routes: Any, *stored: Any) -> Any:
    """y[p] = x[row of p] @ weight of its expert.T"""
    top, outputs, inputs = fields["top"], fields["outputs"], fields["k"]
    pairs = x_K.shape[0] * top if fields["shared"] else x_K.shape[0]
    axis = te.reduce_axis((0, inputs), "k")

    def product(p: Any, n: Any) -> Any:
        expert = tirx.Cast("int64", routes[p // top, p % top])
        row = p // top if fields["shared"] else p
        return te.sum(x_K[row, axis] * weight_at(fields, stored, expert * outputs + n, axis), axis=axis)

    return te.compute((pairs, outputs), product, "product")


class ExpertLinear(Weight):
    """The matrices (N, K) of all experts, one under the other; a row of x for each token (``shared``) or each pair."""

    def __init__(self, experts: int, outputs: int, inputs: int, top: int, shared: bool, scheme: Scheme) -> None:
        super().__init__(experts * outputs, inputs, scheme, True)
        self.own = {"outputs": outputs, "top": top, "shared": shared}

    def forward(self, x_K: nn.Tensor, routes: nn.Tensor) -> nn.Tensor:
        pairs = x_K.shape[0] * self.own["top"] if self.own["shared"] else x_K.shape[0]
        fields, shape = {**self.fields, **self.own}, (pairs, self.own["outputs"])
        return op.emit("expert_linear", _expert_linear, fields, [x_K, routes], self.stored(), shape)


def _expert_sum(fields: Mapping[str, Any], x_PH: Any, routes: Any, *tensors: Any) -> Any:
    top, shape = fields["top"], tensors[0].shape if fields["residual"] else (routes.shape[0], x_PH.shape[1])
    slot = te.reduce_axis((0, top), "slot")
    sums = te.compute(shape, lambda m, h: te.sum(x_PH[m * top + slot, h] * routes[m, top + slot], axis=slot), "mixed")
    if not fields["residual"]:
        return sums
    return te.compute(shape, lambda m, h: tensors[0][m, h] + sums[m, h], "sum")


def expert_sum(x_PH: nn.Tensor, routes: nn.Tensor, residual_MH: nn.Tensor, top: int, ranks: int) -> nn.Tensor:
    """residual + what the experts of each token say, by their shares: (M, H)."""
    if ranks == 1:
        tensors, fields = [x_PH, routes, residual_MH], {"top": top, "residual": True}
        return op.emit("expert_sum", _expert_sum, fields, tensors, [], residual_MH.shape)
    fields = {"top": top, "residual": False}
    part_MH = op.emit("expert_sum", _expert_sum, fields, [x_PH, routes], [], residual_MH.shape)
    summed_MH: nn.Tensor = load("collectives").add(total(part_MH, ranks), residual_MH)
    return summed_MH
