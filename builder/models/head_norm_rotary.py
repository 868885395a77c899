"""Norms and rotation of queries and keys in one operation. Axes: M rows (tokens), F features of all heads, A attention
heads, D head."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from tvm.relax.frontend import nn

from llm_build.architectures.parts import head_norm_rotary as parts
from llm_build.architectures.parts.attention import Attention
from llm_build.ops import gemma
from llm_build.ops.ranks import share
from llm_build.quant.layout import Scheme


class HeadNormRotary:
    """``norms``: modules of the attention that they belong to."""

    def __init__(self, part: Attention, scheme: Scheme, ranks: int) -> None:
        turn = part.query_key
        assert isinstance(turn, parts.HeadNormRotary)
        heads = (share(part.query_heads, ranks), share(part.key_heads, ranks), part.head_dim)
        self.shape = (heads[0] + 2 * heads[1], part.head_dim)
        self.norms = {name: gemma.HeadNorm(part.head_dim, scheme.dtype) for name in ("q_norm", "k_norm")}
        self.turn = gemma.HeadNormRotary(heads, turn.eps, scheme.dtype, turn.theta, turn.factor)

    def __call__(self, qkv_MF: nn.Tensor, positions_M: nn.Tensor) -> nn.Tensor:
        qkv_MAD = nn.op.reshape(qkv_MF, (qkv_MF.shape[0], *self.shape))
        return self.turn(qkv_MAD, positions_M, self.norms["q_norm"].weight, self.norms["k_norm"].weight)
