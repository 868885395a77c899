"""The paged KV cache in a graph. Its kernels are the target's business (builder/lowering/passes/kv_cache.py).

Nothing else imports TVM's: TVM is moving it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tvm import ir, relax, tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn.llm.kv_cache import PagedKVCache

__all__ = ["CREATE", "CacheLayout", "PagedKVCache", "attention", "create", "rope_frequencies"]

CREATE = "llm_build.create_paged_kv_cache"  # replaced by a pass; no runtime knows it


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """What a cache holds per token, and what its kernels do with it.

    ``inv_freq``: rotary frequencies in radians per token, one per pair of the first ``rotary_dim`` features (none:
    the graph rotates by itself); ``rotary_scale`` multiplies sine and cosine. ``window`` (tokens, 0: off): in layers
    that say so, a token sees the first ``sinks`` tokens and as many of the last ones as make up the window, itself
    included. ``soft_cap`` (0: off): a score s becomes soft_cap * tanh(s / soft_cap).
    """

    layers: int
    query_heads: int
    key_heads: int
    head_dim: int
    rotary_dim: int
    inv_freq: tuple[float, ...]
    dtype: str = "float32"
    rotary_scale: float = 1.0
    window: int = 0
    sinks: int = 0
    soft_cap: float = 0.0


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """What attention differs in from layer to layer: scores are multiplied by ``scale``, which is above 0; ``windowed``
    layers look through the cache's window."""

    scale: float
    windowed: bool = False


def encode(layer: LayerAttention) -> float:
    """The one number that TVM's runtime hands its kernels of a layer: the scale, negative where the layer is windowed.

    Its own kind of layer for this ("mha_sliding") cannot carry it: it cuts the page table to the window's last tokens,
    which drops sinks, and turns off tree attention and cached rotary embeddings in all layers. What reads the number:
    ``scale_of``, ``windowed`` and ``sees_all``.
    """
    assert layer.scale > 0, layer
    return -layer.scale if layer.windowed else layer.scale


def scale_of(encoded: Any, layout: CacheLayout) -> Any:
    """An expression of the scale."""
    return tirx.max(encoded, -encoded) if layout.window else encoded


def windowed(encoded: Any) -> Any:
    """Whether the layer looks through the window, of a cache that has one."""
    return encoded < 0


def sees_all(encoded: Any) -> Any:
    """The opposite."""
    return encoded > 0


def attention(
    cache: PagedKVCache, layer: int, qkv_MHD: nn.Tensor, query_heads: int, settings: LayerAttention
) -> nn.Tensor:
    """Rotate, append, attend: qkv (M, query + 2 * key heads, D) -> (M, query heads, D); rows as begin_forward said."""
    rows, _, head_dim = qkv_MHD.shape
    scale = encode(settings)
    call = relax.call_dps_packed(
        "vm.builtin.attention_kv_cache_attention_with_fused_qkv",
        [cache._expr, relax.prim_value(layer), relax.prim_value(scale), qkv_MHD._expr],
        out_ty=relax.TensorType((rows, query_heads, head_dim), qkv_MHD.dtype),
    )
    return nn.Tensor(_expr=relax.BlockBuilder.current().emit(call))


def create(layout: CacheLayout, sizes: Sequence[Any]) -> PagedKVCache:
    """``sizes``: max sequences, max tokens in all, prefill chunk, page size (tokens), sliding window (0 or 1)."""
    call = relax.call_pure_packed(
        CREATE, relax.ShapeExpr(list(sizes)), ir.StringImm(json.dumps(asdict(layout))), ty_args=relax.AnyType()
    )
    return PagedKVCache(_expr=call, _name="paged_kv_cache")


def rope_frequencies(theta: float, rotary_dim: int) -> tuple[float, ...]:
    """1 / theta^(2i / rotary_dim) (Su et al. 2021, arXiv:2104.09864), rounded to float32 as transformers does."""
    import numpy as np

    exponent = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    return tuple(float(value) for value in (np.float32(1.0) / np.float32(theta) ** exponent).astype(np.float32))
