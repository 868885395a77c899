"""The functions that every library has, over what a family gives: ``embedded``, ``layers`` and ``head``.

Names and signatures are those that MLC's runtimes and WebLLM call. Axes: M rows (tokens of all sequences in one call),
H hidden, B sequences, V vocabulary.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm.relax.frontend import nn

from llm_build.ops.kv_cache import CacheLayout, PagedKVCache, create
from llm_build.ops.ranks import everywhere
from llm_build.ops.rows import last_row, take_rows


class Functions(nn.Module):
    """The base of every family's ``Model``."""

    def __init__(self, vocab: int, hidden: int, cache: CacheLayout, metadata: Mapping[str, Any]) -> None:
        super().__init__()
        self.vocab, self.hidden, self.cache, self.metadata = vocab, hidden, cache, dict(metadata)
        self.ranks = metadata["tensor_parallel_shards"]

    def embedded(self, input_ids: nn.Tensor) -> nn.Tensor:
        """Ids (M,) int32 -> (M, H)."""
        raise NotImplementedError

    def layers(self, x_MH: nn.Tensor, cache: PagedKVCache) -> nn.Tensor:
        """All decoder layers: (M, H) -> (M, H)."""
        raise NotImplementedError

    def head(self, x_MH: nn.Tensor) -> nn.Tensor:
        """The last norm and the head: (M, H) -> (M, V)."""
        raise NotImplementedError

    def rows(self, input_embed: nn.Tensor, count: Any, cache: PagedKVCache) -> nn.Tensor:
        return self.layers(nn.op.reshape(input_embed, (count, self.hidden)), cache)

    def logits(self, x_MH: nn.Tensor, shape: tuple[Any, ...]) -> nn.Tensor:
        return nn.op.reshape(self.head(x_MH), (*shape, self.vocab))

    def embed(self, input_ids: nn.Tensor) -> nn.Tensor:
        return self.embedded(everywhere(input_ids, self.ranks))

    def prefill(self, input_embed: nn.Tensor, paged_kv_cache: PagedKVCache) -> tuple[nn.Tensor, PagedKVCache]:
        x_MH = self.rows(input_embed, input_embed.shape[1], paged_kv_cache)
        return self.logits(last_row(x_MH, self.hidden), (1, 1)), paged_kv_cache

    def decode(self, input_embed: nn.Tensor, paged_kv_cache: PagedKVCache) -> tuple[nn.Tensor, PagedKVCache]:
        return self.logits(self.rows(input_embed, 1, paged_kv_cache), (1, 1)), paged_kv_cache

    def batch_prefill(
        self, input_embeds: nn.Tensor, logit_positions: nn.Tensor, paged_kv_cache: PagedKVCache
    ) -> tuple[nn.Tensor, PagedKVCache]:
        x_MH = self.rows(input_embeds, input_embeds.shape[1], paged_kv_cache)
        last_BH = take_rows(x_MH, everywhere(logit_positions, self.ranks), self.hidden)
        return self.logits(last_BH, (1, logit_positions.shape[0])), paged_kv_cache

    def batch_decode(self, input_embeds: nn.Tensor, paged_kv_cache: PagedKVCache) -> tuple[nn.Tensor, PagedKVCache]:
        batch = input_embeds.shape[0]
        return self.logits(self.rows(input_embeds, batch, paged_kv_cache), (batch, 1)), paged_kv_cache

    def batch_verify(self, input_embeds: nn.Tensor, paged_kv_cache: PagedKVCache) -> tuple[nn.Tensor, PagedKVCache]:
        length = input_embeds.shape[1]
        return self.logits(self.rows(input_embeds, length, paged_kv_cache), (1, length)), paged_kv_cache

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
