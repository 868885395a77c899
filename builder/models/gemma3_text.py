"""The Gemma 3 text graph: norms before and after attention and MLP, gated gelu, normed queries and keys, and a window
in all layers but every ``full_attention_every``-th. The two kinds of layers have rotary bases of their own, so the
graph rotates, and the cache does not.

Gemma Team 2025 (arXiv:2503.19786). Module names are those of transformers, with q, k, v and gate, up fused. Axes: M
rows (tokens of all sequences in one call), H hidden, A attention heads, D head.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm.relax.frontend import nn

from builder.architectures.gemma3_text import Config
from builder.models.functions import Functions
from builder.ops.embedding import Embedding
from builder.ops.gates import gelu_mul
from builder.ops.gemma import HeadNorm, HeadNormRotary, Norm, scaled
from builder.ops.kv_cache import CacheLayout, PagedKVCache, attention
from builder.ops.linear import Linear
from builder.ops.ranks import Head, RowLinear, share
from builder.quant.layout import Scheme


class Attention(nn.Module):
    def __init__(self, config: Config, scheme: Scheme, ranks: int, local: bool, windowed: bool) -> None:
        super().__init__()
        self.query_heads, self.key_heads = (
            share(config.num_attention_heads, ranks),
            share(config.num_key_value_heads, ranks),
        )
        self.head_dim, self.windowed = config.head_dim, windowed
        self.scale = config.query_pre_attn_scalar**-0.5
        self.heads = self.query_heads + 2 * self.key_heads
        self.qkv_proj = Linear(self.heads * self.head_dim, config.hidden_size, scheme)
        self.q_norm, self.k_norm = HeadNorm(self.head_dim, scheme.dtype), HeadNorm(self.head_dim, scheme.dtype)
        heads = (self.query_heads, self.key_heads, self.head_dim)
        theta, factor = (config.rope_local_base_freq, 1.0) if local else (config.rope_theta, config.rope_factor)
        self.turn = HeadNormRotary(heads, config.rms_norm_eps, scheme.dtype, theta, factor)
        self.o_proj = RowLinear(config.hidden_size, self.query_heads * self.head_dim, scheme, ranks)

    def forward(self, x_MH: nn.Tensor, positions_M: nn.Tensor, cache: PagedKVCache, layer: int) -> nn.Tensor:
        rows = x_MH.shape[0]
        qkv_MAD = nn.op.reshape(self.qkv_proj(x_MH), (rows, self.heads, self.head_dim))
        turned_MAD = self.turn(qkv_MAD, positions_M, self.q_norm.weight, self.k_norm.weight)
        mixed_MAD = attention(cache, layer, turned_MAD, self.query_heads, self.scale, self.windowed)
        return self.o_proj(nn.op.reshape(mixed_MAD, (rows, self.query_heads * self.head_dim)))


class MLP(nn.Module):
    def __init__(self, config: Config, scheme: Scheme, ranks: int) -> None:
        super().__init__()
        self.width = share(config.intermediate_size, ranks)
        self.gate_up_proj = Linear(2 * self.width, config.hidden_size, scheme)
        self.down_proj = RowLinear(config.hidden_size, self.width, scheme, ranks)

    def forward(self, x_MH: nn.Tensor) -> nn.Tensor:
        return self.down_proj(gelu_mul(self.gate_up_proj(x_MH), self.width))


class Layer(nn.Module):
    def __init__(self, config: Config, scheme: Scheme, ranks: int, local: bool, windowed: bool) -> None:
        super().__init__()

        def norm() -> Norm:
            return Norm(config.hidden_size, config.rms_norm_eps, scheme.dtype)

        self.input_layernorm = norm()
        self.self_attn = Attention(config, scheme, ranks, local, windowed)
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.mlp = MLP(config, scheme, ranks)
        self.post_feedforward_layernorm = norm()

    def forward(self, x_MH: nn.Tensor, positions_M: nn.Tensor, cache: PagedKVCache, layer: int) -> nn.Tensor:
        mixed_MH = self.self_attn(self.input_layernorm(x_MH), positions_M, cache, layer)
        x_MH = self.post_attention_layernorm(mixed_MH, x_MH)
        return self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x_MH)), x_MH)


class Decoder(nn.Module):
    def __init__(self, config: Config, scheme: Scheme, ranks: int, window: int) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, scheme, scheme.quantize_embedding)
        local = [(i + 1) % config.full_attention_every > 0 for i in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList([Layer(config, scheme, ranks, here, here and window > 0) for here in local])
        self.norm = Norm(config.hidden_size, config.rms_norm_eps, scheme.dtype)

    def forward(self, x_MH: nn.Tensor, cache: PagedKVCache) -> nn.Tensor:
        positions_M = cache.get_query_positions(x_MH.shape[0])
        for index, layer in enumerate(self.layers):
            x_MH = layer(x_MH, positions_M, cache, index)
        return x_MH


class Model(Functions):
    def __init__(self, config: Config, scheme: Scheme, metadata: Mapping[str, Any]) -> None:
        super().__init__(config.vocab_size, config.hidden_size, cache_layout(config, metadata), metadata)
        self.model = Decoder(config, scheme, self.ranks, self.cache.window)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Head(self.vocab, self.hidden, scheme, self.ranks)

    def embedded(self, input_ids: nn.Tensor) -> nn.Tensor:
        return scaled(self.model.embed_tokens(input_ids), self.hidden, self.hidden**0.5)

    def layers(self, x_MH: nn.Tensor, cache: PagedKVCache) -> nn.Tensor:
        return self.model(x_MH, cache)

    def head(self, x_MH: nn.Tensor) -> nn.Tensor:
        head = self.model.embed_tokens.head if self.lm_head is None else self.lm_head
        return head(self.model.norm(x_MH))


def cache_layout(config: Config, metadata: Mapping[str, Any]) -> CacheLayout:
    ranks = metadata["tensor_parallel_shards"]
    """No window where no context outgrows it."""
    return CacheLayout(
        layers=config.num_hidden_layers,
        query_heads=share(config.num_attention_heads, ranks),
        key_heads=share(config.num_key_value_heads, ranks),
        head_dim=config.head_dim,
        rotary_dim=0,
        inv_freq=(),
        window=config.layer_window if config.layer_window < metadata["context_window_size"] else 0,
    )
