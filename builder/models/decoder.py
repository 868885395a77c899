"""The graph of a decoder. Module names are those of transformers, with q, k, v and gate, up fused.

Axes: M rows (tokens of all sequences in one call), H hidden, V vocabulary.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tvm.relax.frontend import nn

from llm_build import models
from llm_build.architectures.parts import decoder as parts
from llm_build.architectures.parts.attention import Attention
from llm_build.architectures.parts.norms import Norm
from llm_build.models.functions import Functions
from llm_build.models.layer_inputs import LayerInputs
from llm_build.ops.embedding import Embedding
from llm_build.ops.kv_cache import CacheLayout, PagedKVCache
from llm_build.ops.ranks import Head, share
from llm_build.ops.rope import frequencies
from llm_build.quant.layout import Scheme


class _Layer(nn.Module):
    def __init__(self, layer: parts.Layer, scheme: Scheme, ranks: int, window: bool) -> None:
        super().__init__()
        self.residuals, self.parallel = layer.residuals, layer.parallel
        for name, part in layer.modules.items():
            setattr(self, name, _module_of(part, scheme, ranks, window))

    def forward(self, x_MH: nn.Tensor, inputs: LayerInputs) -> nn.Tensor:
        sum_MH = x_MH
        for residual in self.residuals:
            read_MH = x_MH if self.parallel else sum_MH
            read_MH = getattr(self, residual.before)(read_MH) if residual.before else read_MH
            block = getattr(self, residual.block)
            if residual.after:
                sum_MH = getattr(self, residual.after)(block(read_MH, None, inputs), sum_MH)
            else:
                sum_MH = block(read_MH, sum_MH, inputs)
        return sum_MH


def _module_of(part: parts.Part, scheme: Scheme, ranks: int, window: bool) -> nn.Module:
    """``window``: the model's cache has one."""
    graph = models.load(part.graph)
    if isinstance(part, Norm):
        return graph(part.width, part.eps, scheme.dtype)
    if isinstance(part, Attention):
        part = replace(part, windowed=part.windowed and window)
    return graph(part, scheme, ranks)


class _Layers(nn.Module):
    """Embedding, layers and the last norm, under the family's names."""

    def __init__(self, decoder: parts.Decoder, scheme: Scheme, ranks: int, window: bool) -> None:
        super().__init__()
        embedding = Embedding(decoder.vocab, decoder.hidden, scheme, scheme.quantize_embedding)
        setattr(self, decoder.embedding_name, embedding)
        self.layers = nn.ModuleList([_Layer(layer, scheme, ranks, window) for layer in decoder.layers])
        setattr(self, decoder.norm_name, _module_of(decoder.norm, scheme, ranks, window))
        turns = [layer.attention.query_key for layer in decoder.layers]
        self.needs_positions = any(turn is not None and turn.needs_positions for turn in turns)

    def forward(self, x_MH: nn.Tensor, cache: PagedKVCache) -> nn.Tensor:
        positions_M = cache.get_query_positions(x_MH.shape[0]) if self.needs_positions else None
        for index, layer in enumerate(self.layers):
            x_MH = layer(x_MH, LayerInputs(cache, index, positions_M))
        return x_MH


class Model(Functions):
    def __init__(self, decoder: parts.Decoder, scheme: Scheme, metadata: Mapping[str, Any]) -> None:
        super().__init__(decoder.vocab, decoder.hidden, _cache_layout(decoder, metadata), metadata)
        self.decoder, self.dtype = decoder, scheme.dtype
        setattr(self, decoder.stem, _Layers(decoder, scheme, self.ranks, self.cache.window > 0))
        head = None if decoder.tied else Head(self.vocab, self.hidden, scheme, self.ranks)
        setattr(self, decoder.head_name, head)

    def embedded(self, input_ids: nn.Tensor) -> nn.Tensor:
        x_MH = self._of_layers(self.decoder.embedding_name)(input_ids)
        scale = self.decoder.embedding_scale
        return x_MH if scale is None else models.load(parts.SCALED)(x_MH, self.hidden, scale)

    def layers(self, x_MH: nn.Tensor, cache: PagedKVCache) -> nn.Tensor:
        return getattr(self, self.decoder.stem)(x_MH, cache)

    def head(self, x_MH: nn.Tensor) -> nn.Tensor:
        head = getattr(self, self.decoder.head_name)
        head = self._of_layers(self.decoder.embedding_name).head if head is None else head
        logits_MV, cap = head(self._of_layers(self.decoder.norm_name)(x_MH)), self.decoder.logit_cap
        return logits_MV if cap is None else models.load(parts.SOFT_CAP)(logits_MV, self.vocab, cap)

    def _of_layers(self, name: str) -> Any:
        return getattr(getattr(self, self.decoder.stem), name)


def _cache_layout(decoder: parts.Decoder, metadata: Mapping[str, Any]) -> CacheLayout:
    """Layers have no window of their own where no context outgrows it."""
    ranks, context = metadata["tensor_parallel_shards"], metadata["context_window_size"]
    attention, rotary, window, sinks = decoder.attention, decoder.rotary, decoder.window or 0, 0
    if decoder.recipe_window:
        window, sinks = max(metadata["sliding_window_size"], 0), metadata["attention_sink_size"]
    elif window >= context:
        window = 0
    return CacheLayout(
        layers=len(decoder.layers),
        query_heads=share(attention.query_heads, ranks),
        key_heads=share(attention.key_heads, ranks),
        head_dim=attention.head_dim,
        rotary_dim=rotary.dim if rotary else 0,
        inv_freq=frequencies(rotary.theta, rotary.dim, rotary.scaling, context) if rotary else (),
        rotary_scale=rotary.magnitude if rotary else 1.0,
        window=window,
        sinks=sinks,
        soft_cap=decoder.score_cap or 0.0,
    )
