"""The paged KV cache in a graph. Its kernels are the target's business (builder/lowering/passes/kv_cache.py).

Nothing else imports TVM's: TVM is moving it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tvm import ir, relax
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


def attention(
    cache: PagedKVCache, layer: int, qkv_MHD: nn.Tensor, query_heads: int, scale: float, windowed: bool = False
) -> nn.Tensor:
    """Rotate, append, attend: qkv (M, query + 2 * key heads, D) -> (M, query heads, D); rows as begin_forward said.

    ``windowed``: this layer looks through the cache's window. TVM's runtime hands its kernels nothing else of a layer
    than the scale, so the sign of it says this.
    """
    rows, _, head_dim = qkv_MHD.shape
    scale = -scale if windowed else scale
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
