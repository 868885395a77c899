"""The GPT-NeoX graph: attention and MLP side by side or one after the other, LayerNorms, biases, partly rotated heads.

Black et al. 2022 (arXiv:2204.06745). Module names are those of transformers, but for ``qkv_proj`` (see
builder/architectures/gpt_neox.py). Axes: M rows (tokens of all sequences in one call), H hidden, A attention heads, D
head.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm.relax.frontend import nn

from builder.architectures.gpt_neox import Config
from builder.models.functions import Functions
from builder.ops.embedding import Embedding
from builder.ops.gates import gelu
from builder.ops.kv_cache import CacheLayout, PagedKVCache, attention
from builder.ops.linear import Linear
from builder.ops.norms import LayerNorm
from builder.ops.ranks import Head, RowLinear, share
from builder.ops.rope import frequencies
from builder.quant.layout import Scheme


class Attention(nn.Module):
    def __init__(self, config: Config, scheme: Scheme, ranks: int) -> None:
        super().__init__()
        self.heads, self.head_dim = share(config.num_attention_heads, ranks), config.head_dim
        self.width, bias = self.heads * self.head_dim, config.attention_bias
        self.qkv_proj = Linear(3 * self.width, config.hidden_size, scheme, bias)
        self.dense = RowLinear(config.hidden_size, self.width, scheme, ranks, bias)

    def forward(self, x_MH: nn.Tensor, residual_MH: nn.Tensor, cache: PagedKVCache, layer: int) -> nn.Tensor:
        rows = x_MH.shape[0]
        qkv_MAD = nn.op.reshape(self.qkv_proj(x_MH), (rows, 3 * self.heads, self.head_dim))
        mixed_MAD = attention(cache, layer, qkv_MAD, self.heads, self.head_dim**-0.5)
        return self.dense(nn.op.reshape(mixed_MAD, (rows, self.width)), residual_MH)


class MLP(nn.Module):
    def __init__(self, config: Config, scheme: Scheme, ranks: int) -> None:
        super().__init__()
        self.width, self.activation = share(config.intermediate_size, ranks), config.hidden_act
        self.dense_h_to_4h = Linear(self.width, config.hidden_size, scheme, bias=True)
        self.dense_4h_to_h = RowLinear(config.hidden_size, self.width, scheme, ranks, bias=True)

    def forward(self, x_MH: nn.Tensor, residual_MH: nn.Tensor) -> nn.Tensor:
        return self.dense_4h_to_h(gelu(self.dense_h_to_4h(x_MH), self.width, self.activation), residual_MH)


class Layer(nn.Module):
    def __init__(self, config: Config, scheme: Scheme, ranks: int) -> None:
        super().__init__()
        self.parallel = config.use_parallel_residual
        self.input_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps, scheme.dtype)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps, scheme.dtype)
        self.attention = Attention(config, scheme, ranks)
        self.mlp = MLP(config, scheme, ranks)

    def forward(self, x_MH: nn.Tensor, cache: PagedKVCache, layer: int) -> nn.Tensor:
        attended_MH = self.attention(self.input_layernorm(x_MH), x_MH, cache, layer)
        taken_MH = x_MH if self.parallel else attended_MH
        return self.mlp(self.post_attention_layernorm(taken_MH), attended_MH)


class Decoder(nn.Module):
    def __init__(self, config: Config, scheme: Scheme, ranks: int) -> None:
        super().__init__()
        self.embed_in = Embedding(config.vocab_size, config.hidden_size, scheme, scheme.quantize_embedding)
        self.layers = nn.ModuleList([Layer(config, scheme, ranks) for _ in range(config.num_hidden_layers)])
        self.final_layer_norm = LayerNorm(config.hidden_size, config.layer_norm_eps, scheme.dtype)

    def forward(self, x_MH: nn.Tensor, cache: PagedKVCache) -> nn.Tensor:
        for index, layer in enumerate(self.layers):
            x_MH = layer(x_MH, cache, index)
        return x_MH


class Model(Functions):
    def __init__(self, config: Config, scheme: Scheme, metadata: Mapping[str, Any]) -> None:
        super().__init__(config.vocab_size, config.hidden_size, cache_layout(config, metadata), metadata)
        self.gpt_neox = Decoder(config, scheme, self.ranks)
        tied = config.tie_word_embeddings
        self.embed_out = None if tied else Head(self.vocab, self.hidden, scheme, self.ranks)

    def embedded(self, input_ids: nn.Tensor) -> nn.Tensor:
        return self.gpt_neox.embed_in(input_ids)

    def layers(self, x_MH: nn.Tensor, cache: PagedKVCache) -> nn.Tensor:
        return self.gpt_neox(x_MH, cache)

    def head(self, x_MH: nn.Tensor) -> nn.Tensor:
        head = self.gpt_neox.embed_in.head if self.embed_out is None else self.embed_out
        return head(self.gpt_neox.final_layer_norm(x_MH))


def cache_layout(config: Config, metadata: Mapping[str, Any]) -> CacheLayout:
    ranks = metadata["tensor_parallel_shards"]
    return CacheLayout(
        layers=config.num_hidden_layers,
        query_heads=share(config.num_attention_heads, ranks),
        key_heads=share(config.num_attention_heads, ranks),
        head_dim=config.head_dim,
        rotary_dim=config.rotary_dim,
        inv_freq=frequencies(config.rope_theta, config.rotary_dim, config.rope_scaling),
    )
