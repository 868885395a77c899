"""MLPs of two layers. Axes: M rows (tokens), H hidden."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from tvm.relax.frontend import nn

from llm_build.architectures.parts import mlp as parts
from llm_build.models.layer_inputs import LayerInputs
from llm_build.ops.gates import gelu
from llm_build.ops.linear import Linear
from llm_build.ops.ranks import RowLinear, share
from llm_build.quant.layout import Scheme


class MLP(nn.Module):
    def __init__(self, part: parts.MLP, scheme: Scheme, ranks: int) -> None:
        super().__init__()
        self.width, self.activation = share(part.inner, ranks), part.activation
        self.up, self.down = part.up, part.down
        setattr(self, part.up, Linear(self.width, part.hidden, scheme, bias=True))
        setattr(self, part.down, RowLinear(part.hidden, self.width, scheme, ranks, bias=True))

    def forward(self, x_MH: nn.Tensor, residual_MH: nn.Tensor | None, _: LayerInputs) -> nn.Tensor:
        inner_MI = gelu(getattr(self, self.up)(x_MH), self.width, self.activation)
        return getattr(self, self.down)(inner_MI, residual_MH)
