"""Gated MLPs. Axes: M rows (tokens), H hidden."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from tvm.relax.frontend import nn

from llm_build import models
from llm_build.architectures.parts import mlp as parts
from llm_build.models.layer_inputs import LayerInputs
from llm_build.ops.linear import Linear
from llm_build.ops.ranks import RowLinear, share
from llm_build.quant.layout import Scheme


class GatedMLP(nn.Module):
    def __init__(self, part: parts.GatedMLP, scheme: Scheme, ranks: int) -> None:
        super().__init__()
        self.width, self.activation = share(part.inner, ranks), models.load(part.activation)
        self.gate_up_proj = Linear(2 * self.width, part.hidden, scheme, part.bias)
        self.down_proj = RowLinear(part.hidden, self.width, scheme, ranks, part.bias)

    def forward(self, x_MH: nn.Tensor, residual_MH: nn.Tensor | None, _: LayerInputs) -> nn.Tensor:
        return self.down_proj(self.activation(self.gate_up_proj(x_MH), self.width), residual_MH)
