"""What a layer computes with beside its activations."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.relax.frontend import nn

from llm_build.ops.kv_cache import PagedKVCache


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """The KV cache, the layer's number in it, and the positions of the rows, (M,) int32, where the graph rotates."""

    cache: PagedKVCache
    layer: int
    positions_M: nn.Tensor | None
