"""One model on several ranks: each has some of the heads, of the inner features and of the vocabulary.

Shoeybi et al. 2019 (arXiv:1909.08053): a layer whose outputs are divided needs nothing of the others; one whose
inputs are divided gives each rank a part of a sum, and the parts are added up. What is small, or belongs to no part, is
on every rank: embedding, norms, routers, biases after a sum. The library is the same for all ranks, so no rank's number
is in it. The collectives are called by the names that TVM's disco has for them. With one rank there is none.
Axes: M rows (tokens), H features, V vocabulary, R ranks.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from tvm.relax.frontend import nn

from llm_build.ops import load
from llm_build.ops.linear import Linear, project
from llm_build.quant.layout import Scheme


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


class RowLinear(Linear):
    """A linear layer that has ``inputs`` of its inputs on each rank; each adds its share of bias and residual."""

    def __init__(self, outputs: int, inputs: int, scheme: Scheme, ranks: int, bias: bool = False) -> None:
        super().__init__(outputs, inputs, scheme, bias)
        self.ranks = ranks

    def forward(self, x_MK: nn.Tensor, residual_MN: nn.Tensor | None = None) -> nn.Tensor:
        if self.ranks == 1:
            return super().forward(x_MK, residual_MN)
        return total(project(self, x_MK, self.bias, residual_MN, self.ranks), self.ranks)


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
        logits_MV: nn.Tensor = load("collectives").joined(gathered, part_MV.shape[0], self.parts, self.outputs)
        return logits_MV
