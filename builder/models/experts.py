"""Mixtures of experts. Axes: M rows (tokens), H hidden, P pairs of token and expert, I inner features."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from tvm.relax.frontend import nn

from llm_build.architectures.parts import experts as parts
from llm_build.models.layer_inputs import LayerInputs
from llm_build.ops.experts import ExpertLinear, Router, expert_sum
from llm_build.ops.gates import silu_mul
from llm_build.ops.ranks import share
from llm_build.quant.layout import Scheme


class Experts(Router):
    def __init__(self, part: parts.Experts, scheme: Scheme, ranks: int) -> None:
        super().__init__(part.count, part.top, part.hidden, scheme, part.normalized)
        self.width, self.top, self.ranks = share(part.inner, ranks), part.top, ranks
        self.gate_up_proj = ExpertLinear(part.count, 2 * self.width, part.hidden, part.top, True, scheme)
        self.down_proj = ExpertLinear(part.count, part.hidden, self.width, part.top, False, scheme)

    def forward(self, x_MH: nn.Tensor, residual_MH: nn.Tensor, _: LayerInputs) -> nn.Tensor:
        routes = self.routes(x_MH)
        inner_PI = silu_mul(self.gate_up_proj(x_MH, routes), self.width)
        return expert_sum(self.down_proj(inner_PI, routes), routes, residual_MH, self.top, self.ranks)
