"""Attention over the KV cache. Axes: M rows (tokens), H hidden, F features of all heads, A attention heads, D head."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from tvm.relax.frontend import nn

from llm_build import models
from llm_build.architectures.parts import attention as parts
from llm_build.models.layer_inputs import LayerInputs
from llm_build.ops.kv_cache import LayerAttention, attention
from llm_build.ops.linear import Linear
from llm_build.ops.ranks import RowLinear, share
from llm_build.quant.layout import Scheme


class Attention(nn.Module):
    def __init__(self, part: parts.Attention, scheme: Scheme, ranks: int) -> None:
        super().__init__()
        self.query_heads, self.key_heads = share(part.query_heads, ranks), share(part.key_heads, ranks)
        self.heads, self.head_dim = self.query_heads + 2 * self.key_heads, part.head_dim
        self.width, self.output = self.query_heads * self.head_dim, part.output
        scale = part.head_dim**-0.5 if part.scale is None else part.scale
        self.settings = LayerAttention(scale, part.windowed)
        self.qkv_proj = Linear(self.heads * self.head_dim, part.hidden, scheme, part.bias)
        self.query_key = models.load(part.query_key.graph)(part, scheme, ranks) if part.query_key else None
        for name, norm in self.query_key.norms.items() if self.query_key else ():
            setattr(self, name, norm)
        setattr(self, part.output, RowLinear(part.hidden, self.width, scheme, ranks, part.output_bias))

    def forward(self, x_MH: nn.Tensor, residual_MH: nn.Tensor | None, inputs: LayerInputs) -> nn.Tensor:
        rows, qkv_MF = x_MH.shape[0], self.qkv_proj(x_MH)
        qkv_MAD = self._heads(qkv_MF, inputs.positions_M)
        mixed_MAD = attention(inputs.cache, inputs.layer, qkv_MAD, self.query_heads, self.settings)
        return getattr(self, self.output)(nn.op.reshape(mixed_MAD, (rows, self.width)), residual_MH)

    def _heads(self, qkv_MF: nn.Tensor, positions_M: nn.Tensor | None) -> nn.Tensor:
        """Queries and keys as they are cached, or as the cache rotates them."""
        if self.query_key is not None:
            qkv_MF = self.query_key(qkv_MF, positions_M)
        return nn.op.reshape(qkv_MF, (qkv_MF.shape[0], self.heads, self.head_dim)) if len(qkv_MF.shape) == 2 else qkv_MF
