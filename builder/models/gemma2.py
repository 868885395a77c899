"""The Gemma 2 graph: norms before and after attention and MLP, gated gelu, capped scores and logits, and a window in
all layers but every ``full_attention_every``-th.

Gemma Team 2024 (arXiv:2408.00118). Module names are those of transformers, with q, k, v and gate, up fused. Axes: M
rows (tokens of all sequences in one call), H hidden, A attention heads, D head.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm.relax.frontend import nn

from builder.architectures.gemma2 import Config
from builder.models.functions import Functions
from builder.ops.embedding import Embedding
from builder.ops.gates import gelu_mul
from builder.ops.gemma import Norm, scaled, soft_cap
from builder.ops.kv_cache import CacheLayout, PagedKVCache, attention, rope_frequencies
from builder.ops.linear import Linear
from builder.ops.ranks import Head, RowLinear, share
from builder.quant.layout import Scheme


class Attention(nn.Module):
    def __init__(self, config: Config, scheme: Scheme, ranks: int, windowed: bool) -> None:
        super().__init__()
        self.query_heads, self.key_heads = (
            share(config.num_attention_heads, ranks),
            share(config.num_key_value_heads, ranks),
        )
        self.head_dim, self.windowed = config.head_dim, windowed
        self.scale = config.query_pre_attn_scalar**-0.5
        self.heads = self.query_heads + 2 * self.key_heads
        self.qkv_proj = Linear(self.heads * self.head_dim, config.hidden_size, scheme)
        self.o_proj = RowLinear(config.hidden_size, self.query_heads * self.head_dim, scheme, ranks)

    def forward(self, x_MH: nn.Tensor, cache: PagedKVCache, layer: int) -> nn.Tensor:
        rows = x_MH.shape[0]
        qkv_MAD = nn.op.reshape(self.qkv_proj(x_MH), (rows, self.heads, self.head_dim))
        mixed_MAD = attention(cache, layer, qkv_MAD, self.query_heads, self.scale, self.windowed)
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
    def __init__(self, config: Config, scheme: Scheme, ranks: int, windowed: bool) -> None:
        super().__init__()

        def norm() -> Norm:
            return Norm(config.hidden_size, config.rms_norm_eps, scheme.dtype)

        self.input_layernorm = norm()
        self.self_attn = Attention(config, scheme, ranks, windowed)
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.mlp = MLP(config, scheme, ranks)
        self.post_feedforward_layernorm = norm()

    def forward(self, x_MH: nn.Tensor, cache: PagedKVCache, layer: int) -> nn.Tensor:
        mixed_MH = self.self_attn(self.input_layernorm(x_MH), cache, layer)
        x_MH = self.post_attention_layernorm(mixed_MH, x_MH)
        return self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x_MH)), x_MH)


class Decoder(nn.Module):
    def __init__(self, config: Config, scheme: Scheme, ranks: int, window: int) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, scheme, scheme.quantize_embedding)
        kinds = [window > 0 and (i + 1) % config.full_attention_every > 0 for i in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList([Layer(config, scheme, ranks, windowed) for windowed in kinds])
        self.norm = Norm(config.hidden_size, config.rms_norm_eps, scheme.dtype)

    def forward(self, x_MH: nn.Tensor, cache: PagedKVCache) -> nn.Tensor:
        for index, layer in enumerate(self.layers):
            x_MH = layer(x_MH, cache, index)
        return x_MH


class Model(Functions):
    def __init__(self, config: Config, scheme: Scheme, metadata: Mapping[str, Any]) -> None:
        super().__init__(config.vocab_size, config.hidden_size, cache_layout(config, metadata), metadata)
        self.model = Decoder(config, scheme, self.ranks, self.cache.window)
        self.cap = config.final_logit_softcapping
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Head(self.vocab, self.hidden, scheme, self.ranks)

    def embedded(self, input_ids: nn.Tensor) -> nn.Tensor:
        return scaled(self.model.embed_tokens(input_ids), self.hidden, self.hidden**0.5)

    def layers(self, x_MH: nn.Tensor, cache: PagedKVCache) -> nn.Tensor:
        return self.model(x_MH, cache)

    def head(self, x_MH: nn.Tensor) -> nn.Tensor:
        head = self.model.embed_tokens.head if self.lm_head is None else self.lm_head
        logits_MV = head(self.model.norm(x_MH))
        return logits_MV if self.cap is None else soft_cap(logits_MV, self.vocab, self.cap)


def cache_layout(config: Config, metadata: Mapping[str, Any]) -> CacheLayout:
    ranks = metadata["tensor_parallel_shards"]
    """No window where no context outgrows it."""
    return CacheLayout(
        layers=config.num_hidden_layers,
        query_heads=share(config.num_attention_heads, ranks),
        key_heads=share(config.num_key_value_heads, ranks),
        head_dim=config.head_dim,
        rotary_dim=config.head_dim,
        inv_freq=rope_frequencies(config.rope_theta, config.head_dim),
        window=config.layer_window if config.layer_window < metadata["context_window_size"] else 0,
        soft_cap=config.attn_logit_softcapping or 0.0,
    )
