"""Queries and keys rotated by the graph. Axes: M rows (tokens), F features of all heads, A attention heads, D head."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from tvm.relax.frontend import nn

from llm_build.architectures.parts import rotary as parts
from llm_build.architectures.parts.attention import Attention
from llm_build.ops.ranks import share
from llm_build.ops.rope import frequencies
from llm_build.ops.rotary import rotary
from llm_build.quant.layout import Scheme


class GraphRotary:
    """It has no norms."""

    def __init__(self, part: Attention, _: Scheme, ranks: int) -> None:
        assert isinstance(part.query_key, parts.GraphRotary)
        angles = part.query_key.angles
        self.query_heads, self.key_heads = share(part.query_heads, ranks), share(part.key_heads, ranks)
        self.shape = (self.query_heads + 2 * self.key_heads, part.head_dim)
        self.inv_freq = frequencies(angles.theta, angles.dim, angles.scaling)
        self.norms: dict[str, nn.Module] = {}

    def __call__(self, qkv_MF: nn.Tensor, positions_M: nn.Tensor) -> nn.Tensor:
        qkv_MAD = nn.op.reshape(qkv_MF, (qkv_MF.shape[0], *self.shape))
        return rotary(qkv_MAD, positions_M, self.query_heads, self.key_heads, self.inv_freq)
