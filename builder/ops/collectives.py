"""One model on several ranks: each has some of the heads, of the inner features and of the vocabulary.

Shoeybi et al. 2019 (arXiv:1909.08053): a layer whose outputs are divided needs nothing of the others; one whose
inputs are divided gives each rank a part of a sum, and the parts are added up. What is small, or belongs to no part, is
on every rank: embedding, norms, routers, biases after a sum. The library is the same for all ranks, so no rank's number
is in it. The collectives are called by the names that TVM's disco has for them. With one rank there is none.
Axes: M rows (tokens), H features, V vocabulary, R ranks.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import te, tirx
from tvm.relax.frontend import nn

from builder.ops import emit as op
from builder.ops.linear import Linear, project
from builder.ops.norms import RMSNorm, qk_norm
from builder.quant.layout import Scheme

COMPUTE = "float32"


def share(count: int, ranks: int) -> int:
    """How many of ``count`` heads, features or rows a rank has; of fewer key heads than ranks, each has one."""
    assert count % ranks == 0 or ranks % count == 0, (count, ranks)
    return max(count // ranks, 1)


def everywhere(x: nn.Tensor, ranks: int) -> nn.Tensor:
    """What the first rank was given."""
    return x if ranks == 1 else nn.op.ccl_broadcast_from_worker0(x)


def total(x: nn.Tensor, ranks: int) -> nn.Tensor:
    """The sum of all ranks' tensors, on every rank."""
    return x if ranks == 1 else nn.op.ccl_allreduce(x, "sum")


def _add(fields: Mapping[str, Any], x_MH: Any, *tensors: Any) -> Any:
    """x (+ bias) (+ residual); tensors: residual, bias."""

    def added(m: Any, h: Any) -> Any:
        value = x_MH[m, h]
        value = value + tirx.Cast(COMPUTE, tensors[-1][h]) if fields["bias"] else value
        return value + tensors[0][m, h] if fields["residual"] else value

    return te.compute(x_MH.shape, added, "sum")


def add(x_MH: nn.Tensor, residual_MH: nn.Tensor | None, bias_H: nn.Tensor | None = None) -> nn.Tensor:
    """x (+ bias) (+ residual): (M, H)."""
    if residual_MH is None and bias_H is None:
        return x_MH
    fields = {"width": int(x_MH.shape[1]), "residual": residual_MH is not None, "bias": bias_H is not None}
    activations = [x_MH] if residual_MH is None else [x_MH, residual_MH]
    stored, dtype = ([], "float32") if bias_H is None else ([bias_H], bias_H.dtype)
    return op.emit("add", _add, {**fields, "dtype": dtype}, activations, stored, x_MH.shape)


class RowLinear(Linear):
    """A linear layer that has ``inputs`` of its inputs on each rank; each adds its share of bias and residual."""

    def __init__(self, outputs: int, inputs: int, scheme: Scheme, ranks: int, bias: bool = False) -> None:
        super().__init__(outputs, inputs, scheme, bias)
        self.ranks = ranks

    def forward(self, x_MK: nn.Tensor, residual_MN: nn.Tensor | None = None) -> nn.Tensor:
        if self.ranks == 1:
            return super().forward(x_MK, residual_MN)
        return total(project(self, x_MK, self.bias, residual_MN, self.ranks), self.ranks)


def _joined(fields: Mapping[str, Any], x_RV: Any) -> Any:
    ranks, width = fields["ranks"], fields["width"]
    rows = tirx.indexdiv(x_RV.shape[0], ranks)
    return te.compute((rows, ranks * width), lambda m, v: x_RV[v // width * rows + m, v % width], "joined")


class Head(Linear):
    """Logits of the whole vocabulary, on every rank. Each rank has some of its rows, if they can be divided."""

    def __init__(self, vocab: int, hidden: int, scheme: Scheme, ranks: int) -> None:
        self.parts = ranks if vocab % ranks == 0 else 1
        super().__init__(vocab // self.parts, hidden, scheme, quantize=scheme.quantize_head)

    def forward(self, x_MK: nn.Tensor, residual_MN: nn.Tensor | None = None) -> nn.Tensor:
        part_MV = super().forward(x_MK, residual_MN)
        if self.parts == 1:
            return part_MV
        gathered = nn.op.ccl_allgather(part_MV, self.parts)  # (R * M, V / R): one rank's rows after the other's
        shape = (part_MV.shape[0], self.parts * self.outputs)
        return op.emit("joined", _joined, {"ranks": self.parts, "width": self.outputs}, [gathered], [], shape)


def _qk_means(fields: Mapping[str, Any], qkv_MF: Any) -> Any:
    """The mean of squares of a rank's q features, and of its k features: (M, 2)."""
    q_width, k_width = fields["q_width"], fields["k_width"]
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


def _qk_scaled(fields: Mapping[str, Any], qkv_MF: Any, means_M2: Any, q_weight: Any, k_weight: Any) -> Any:
    """q and k features over the root of the ranks' average of means, times their weights; v features stay."""
    q_end = fields["q_width"]
    k_end = q_end + fields["k_width"]
    ranks, eps = tirx.const(fields["ranks"], COMPUTE), tirx.const(fields["eps"], COMPUTE)

    def gain(m: Any, f: Any) -> Any:
        q = tirx.rsqrt(means_M2[m, 0] / ranks + eps) * tirx.Cast(COMPUTE, q_weight[f])
        k = tirx.rsqrt(means_M2[m, 1] / ranks + eps) * tirx.Cast(COMPUTE, k_weight[f - q_end])
        return tirx.if_then_else(f < q_end, q, tirx.if_then_else(f < k_end, k, tirx.const(1, COMPUTE)))

    return te.compute(qkv_MF.shape, lambda m, f: qkv_MF[m, f] * gain(m, f), "normed")


def qk_norm_over(qkv_MF: nn.Tensor, q_norm: RMSNorm, k_norm: RMSNorm, ranks: int) -> nn.Tensor:
    """All queries and all keys of a token normed as one vector each, whose features all ranks have their shares of.
    Each has as many, and key heads that several have count as often for all: the mean is that of the ranks' means."""
    if ranks == 1:
        return qk_norm(qkv_MF, q_norm, 1, k_norm, 1)
    fields = {"features": int(qkv_MF.shape[1]), "q_width": q_norm.width, "k_width": k_norm.width}
    means_M2 = total(op.emit("qk_means", _qk_means, fields, [qkv_MF], [], (qkv_MF.shape[0], 2)), ranks)
    scaled = {**fields, "eps": q_norm.eps, "dtype": q_norm.dtype, "ranks": ranks}
    weights = [q_norm.weight, k_norm.weight]
    return op.emit("qk_scaled", _qk_scaled, scaled, [qkv_MF, means_M2], weights, qkv_MF.shape)
