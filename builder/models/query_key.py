"""Norms of queries and keys before they are cached. Axes: M rows (tokens), F features of all heads."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from tvm.relax.frontend import nn

from llm_build.architectures.parts import query_key as parts
from llm_build.architectures.parts.attention import Attention
from llm_build.ops.norms import RMSNorm, qk_norm, qk_norm_over
from llm_build.ops.ranks import share
from llm_build.quant.layout import Scheme


class HeadNorms:
    """``norms``: modules of the attention that they belong to."""

    def __init__(self, part: Attention, scheme: Scheme, ranks: int) -> None:
        assert isinstance(part.query_key, parts.HeadNorms)
        self.query_heads, self.key_heads = share(part.query_heads, ranks), share(part.key_heads, ranks)
        eps = part.query_key.eps
        self.norms = {name: RMSNorm(part.head_dim, eps, scheme.dtype) for name in ("q_norm", "k_norm")}

    def __call__(self, qkv_MF: nn.Tensor, _: nn.Tensor | None) -> nn.Tensor:
        return qk_norm(qkv_MF, self.norms["q_norm"], self.query_heads, self.norms["k_norm"], self.key_heads)


class WholeNorms:
    """``norms``: modules of the attention that they belong to."""

    def __init__(self, part: Attention, scheme: Scheme, ranks: int) -> None:
        assert isinstance(part.query_key, parts.WholeNorms)
        heads, self.ranks = {"q_norm": part.query_heads, "k_norm": part.key_heads}, ranks
        self.norms = {
            name: RMSNorm(share(count, ranks) * part.head_dim, part.query_key.eps, scheme.dtype)
            for name, count in heads.items()
        }

    def __call__(self, qkv_MF: nn.Tensor, _: nn.Tensor | None) -> nn.Tensor:
        return qk_norm_over(qkv_MF, self.norms["q_norm"], self.norms["k_norm"], self.ranks)
