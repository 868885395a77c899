"""The Qwen2 graph: a Llama whose q, k and v have biases.

Yang et al. 2024 (arXiv:2407.10671). Module names are those of transformers, with q, k, v and gate, up fused. Axes: M
rows (tokens of all sequences in one call), H hidden, A attention heads, D head.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm.relax.frontend import nn

from builder.architectures.qwen2 import Config
from builder.models.functions import Functions
from builder.ops.embedding import Embedding
from builder.ops.gates import silu_mul
from builder.ops.kv_cache import CacheLayout, PagedKVCache, attention
from builder.ops.linear import Linear
from builder.ops.norms import RMSNorm
from builder.ops.ranks import Head, RowLinear, share
from builder.ops.rope import frequencies
from builder.quant.layout import Scheme


class Attention(nn.Module):
    def __init__(self, config: Config, scheme: Scheme, ranks: int) -> None:
        super().__init__()
        self.query_heads, self.key_heads, self.head_dim = (
            share(config.num_attention_heads, ranks),
            share(config.num_key_value_heads, ranks),
            config.head_dim,
        )
        self.heads = self.query_heads + 2 * self.key_heads
        self.qkv_proj = Linear(self.heads * self.head_dim, config.hidden_size, scheme, bias=True)
        self.o_proj = RowLinear(config.hidden_size, self.query_heads * self.head_dim, scheme, ranks)

    def forward(self, x_MH: nn.Tensor, residual_MH: nn.Tensor, cache: PagedKVCache, layer: int) -> nn.Tensor:
        rows = x_MH.shape[0]
        qkv_MAD = nn.op.reshape(self.qkv_proj(x_MH), (rows, self.heads, self.head_dim))
        mixed_MAD = attention(cache, layer, qkv_MAD, self.query_heads, self.head_dim**-0.5)
        return self.o_proj(nn.op.reshape(mixed_MAD, (rows, self.query_heads * self.head_dim)), residual_MH)


class MLP(nn.Module):
    def __init__(self, config: Config, scheme: Scheme, ranks: int) -> None:
        super().__init__()
        self.width = share(config.intermediate_size, ranks)
        self.gate_up_proj = Linear(2 * self.width, config.hidden_size, scheme)
        self.down_proj = RowLinear(config.hidden_size, self.width, scheme, ranks)

    def forward(self, x_MH: nn.Tensor, residual_MH: nn.Tensor) -> nn.Tensor:
        return self.down_proj(silu_mul(self.gate_up_proj(x_MH), self.width), residual_MH)


class Layer(nn.Module):
    def __init__(self, config: Config, scheme: Scheme, ranks: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, scheme.dtype)
        self.self_attn = Attention(config, scheme, ranks)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, scheme.dtype)
        self.mlp = MLP(config, scheme, ranks)

    def forward(self, x_MH: nn.Tensor, cache: PagedKVCache, layer: int) -> nn.Tensor:
        x_MH = self.self_attn(self.input_layernorm(x_MH), x_MH, cache, layer)
        return self.mlp(self.post_attention_layernorm(x_MH), x_MH)


class Decoder(nn.Module):
    def __init__(self, config: Config, scheme: Scheme, ranks: int) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, scheme, scheme.quantize_embedding)
        self.layers = nn.ModuleList([Layer(config, scheme, ranks) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, scheme.dtype)

    def forward(self, x_MH: nn.Tensor, cache: PagedKVCache) -> nn.Tensor:
        for index, layer in enumerate(self.layers):
            x_MH = layer(x_MH, cache, index)
        return x_MH


class Model(Functions):
    def __init__(self, config: Config, scheme: Scheme, metadata: Mapping[str, Any]) -> None:
        super().__init__(config.vocab_size, config.hidden_size, cache_layout(config, metadata), metadata)
        self.model = Decoder(config, scheme, self.ranks)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Head(self.vocab, self.hidden, scheme, self.ranks)

    def embedded(self, input_ids: nn.Tensor) -> nn.Tensor:
        return self.model.embed_tokens(input_ids)

    def layers(self, x_MH: nn.Tensor, cache: PagedKVCache) -> nn.Tensor:
        return self.model(x_MH, cache)

    def head(self, x_MH: nn.Tensor) -> nn.Tensor:
        head = self.model.embed_tokens.head if self.lm_head is None else self.lm_head
        return head(self.model.norm(x_MH))


def cache_layout(config: Config, metadata: Mapping[str, Any]) -> CacheLayout:
    ranks = metadata["tensor_parallel_shards"]
    return CacheLayout(
        layers=config.num_hidden_layers,
        query_heads=share(config.num_attention_heads, ranks),
        key_heads=share(config.num_key_value_heads, ranks),
        head_dim=config.head_dim,
        rotary_dim=config.head_dim,
        inv_freq=frequencies(config.rope_theta, config.head_dim, config.rope_scaling),
    )
