"""The Llama graph: pre-norm decoder layers, grouped-query attention with rotary embeddings, gated SiLU.

Touvron et al. 2023 (arXiv:2302.13971, arXiv:2307.09288). Module names are those of transformers, with q, k, v and gate,
up fused. Axes: M rows (tokens of all sequences in one call), H hidden, A attention heads, D head, B sequences, V
vocabulary.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

from builder.architectures.llama import Config
from builder.models.common.kv_cache import CacheLayout, attention, create, rope_frequencies
from builder.models.common.ops import RMSNorm, last_row, silu_mul, take_rows
from builder.quant.layout import Scheme
from builder.quant.relax import Embedding, Linear


class Attention(nn.Module):
    def __init__(self, config: Config, scheme: Scheme) -> None:
        super().__init__()
        self.query_heads, self.key_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.heads = self.query_heads + 2 * self.key_heads
        bias = config.attention_bias
        self.qkv_proj = Linear(self.heads * self.head_dim, config.hidden_size, scheme, bias)
        self.o_proj = Linear(config.hidden_size, self.query_heads * self.head_dim, scheme, bias)

    def forward(self, x_MH: nn.Tensor, residual_MH: nn.Tensor, cache: PagedKVCache, layer: int) -> nn.Tensor:
        rows = x_MH.shape[0]
        qkv_MAD = nn.op.reshape(self.qkv_proj(x_MH), (rows, self.heads, self.head_dim))
        mixed_MAD = attention(cache, layer, qkv_MAD, self.query_heads, self.head_dim**-0.5)
        return self.o_proj(nn.op.reshape(mixed_MAD, (rows, self.query_heads * self.head_dim)), residual_MH)


class MLP(nn.Module):
    def __init__(self, config: Config, scheme: Scheme) -> None:
        super().__init__()
        self.width = config.intermediate_size
        self.gate_up_proj = Linear(2 * self.width, config.hidden_size, scheme, config.mlp_bias)
        self.down_proj = Linear(config.hidden_size, self.width, scheme, config.mlp_bias)

    def forward(self, x_MH: nn.Tensor, residual_MH: nn.Tensor) -> nn.Tensor:
        return self.down_proj(silu_mul(self.gate_up_proj(x_MH), self.width), residual_MH)


class Layer(nn.Module):
    def __init__(self, config: Config, scheme: Scheme) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, scheme.dtype)
        self.self_attn = Attention(config, scheme)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, scheme.dtype)
        self.mlp = MLP(config, scheme)

    def forward(self, x_MH: nn.Tensor, cache: PagedKVCache, layer: int) -> nn.Tensor:
        x_MH = self.self_attn(self.input_layernorm(x_MH), x_MH, cache, layer)
        return self.mlp(self.post_attention_layernorm(x_MH), x_MH)


class Decoder(nn.Module):
    def __init__(self, config: Config, scheme: Scheme) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, scheme, scheme.quantize_embedding)
        self.layers = nn.ModuleList([Layer(config, scheme) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, scheme.dtype)

    def forward(self, x_MH: nn.Tensor, cache: PagedKVCache) -> nn.Tensor:
        for index, layer in enumerate(self.layers):
            x_MH = layer(x_MH, cache, index)
        return x_MH


class Model(nn.Module):
    """The functions of the library; names and signatures are those that MLC's runtimes and WebLLM call."""

    def __init__(self, config: Config, scheme: Scheme, metadata: Mapping[str, Any]) -> None:
        super().__init__()
        self.metadata, self.cache = dict(metadata), cache_layout(config)
        self.hidden, self.vocab = config.hidden_size, config.vocab_size
        self.model = Decoder(config, scheme)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(self.vocab, self.hidden, scheme, quantize=scheme.quantize_head)

    def embed(self, input_ids: nn.Tensor) -> nn.Tensor:
        return self.model.embed_tokens(input_ids)

    def logits(self, x_MH: nn.Tensor, shape: tuple[Any, ...]) -> nn.Tensor:
        normed_MH = self.model.norm(x_MH)
        head = self.model.embed_tokens.head if self.lm_head is None else self.lm_head
        return nn.op.reshape(head(normed_MH), shape)

    def rows(self, input_embed: nn.Tensor, count: Any, cache: PagedKVCache) -> nn.Tensor:
        return self.model(nn.op.reshape(input_embed, (count, self.hidden)), cache)

    def prefill(self, input_embed: nn.Tensor, paged_kv_cache: PagedKVCache) -> tuple[nn.Tensor, PagedKVCache]:
        x_MH = self.rows(input_embed, input_embed.shape[1], paged_kv_cache)
        return self.logits(last_row(x_MH, self.hidden), (1, 1, self.vocab)), paged_kv_cache

    def decode(self, input_embed: nn.Tensor, paged_kv_cache: PagedKVCache) -> tuple[nn.Tensor, PagedKVCache]:
        return self.logits(self.rows(input_embed, 1, paged_kv_cache), (1, 1, self.vocab)), paged_kv_cache

    def batch_prefill(
        self, input_embeds: nn.Tensor, logit_positions: nn.Tensor, paged_kv_cache: PagedKVCache
    ) -> tuple[nn.Tensor, PagedKVCache]:
        x_MH = self.rows(input_embeds, input_embeds.shape[1], paged_kv_cache)
        last_BH = take_rows(x_MH, logit_positions, self.hidden)
        return self.logits(last_BH, (1, logit_positions.shape[0], self.vocab)), paged_kv_cache

    def batch_decode(self, input_embeds: nn.Tensor, paged_kv_cache: PagedKVCache) -> tuple[nn.Tensor, PagedKVCache]:
        batch = input_embeds.shape[0]
        return self.logits(self.rows(input_embeds, batch, paged_kv_cache), (batch, 1, self.vocab)), paged_kv_cache

    def batch_verify(self, input_embeds: nn.Tensor, paged_kv_cache: PagedKVCache) -> tuple[nn.Tensor, PagedKVCache]:
        length = input_embeds.shape[1]
        return self.logits(self.rows(input_embeds, length, paged_kv_cache), (1, length, self.vocab)), paged_kv_cache

    def create_tir_paged_kv_cache(
        self,
        max_batch_size: Any,
        max_total_seq_len: Any,
        prefill_chunk_size: Any,
        page_size: Any,
        support_sliding_window: Any,
    ) -> PagedKVCache:
        sizes = (max_batch_size, max_total_seq_len, prefill_chunk_size, page_size, support_sliding_window)
        return create(self.cache, sizes)

    def functions(self) -> dict[str, Any]:
        """Names, argument shapes and parameter passing of what ``export_tvm`` exports."""
        cache, packed = nn.spec.Object(object_type=PagedKVCache), {"param_mode": "packed", "effect_mode": "none"}

        def embeds(*shape: Any) -> Any:
            return nn.spec.Tensor([*shape, self.hidden], "float32")

        sizes = ("max_batch_size", "max_total_seq_len", "prefill_chunk_size", "page_size", "support_sliding_window")
        return {
            "embed": {"input_ids": nn.spec.Tensor(["seq_len"], "int32"), "$": packed},
            "prefill": {"input_embed": embeds(1, "seq_len"), "paged_kv_cache": cache, "$": packed},
            "decode": {"input_embed": embeds(1, 1), "paged_kv_cache": cache, "$": packed},
            "batch_prefill": {
                "input_embeds": embeds(1, "seq_len"),
                "logit_positions": nn.spec.Tensor(["batch_size"], "int32"),
                "paged_kv_cache": cache,
                "$": packed,
            },
            "batch_decode": {"input_embeds": embeds("batch_size", 1), "paged_kv_cache": cache, "$": packed},
            "batch_verify": {"input_embeds": embeds(1, "seq_len"), "paged_kv_cache": cache, "$": packed},
            "create_tir_paged_kv_cache": dict.fromkeys(sizes, int)
            | {"$": {"param_mode": "none", "effect_mode": "none"}},
        }


def cache_layout(config: Config) -> CacheLayout:
    return CacheLayout(
        layers=config.num_hidden_layers,
        query_heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rotary_dim=config.head_dim,
        inv_freq=rope_frequencies(config.rope_theta, config.head_dim),
    )
