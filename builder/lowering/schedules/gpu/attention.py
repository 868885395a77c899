"""Attention over a paged KV cache on a GPU: the kernels that the cache is given."""

from llm_build.lowering.schedules.gpu.decode_attention import decode
from llm_build.lowering.schedules.gpu.prefill_attention import prefill_paged, prefill_ragged

__all__ = ["decode", "prefill_paged", "prefill_ragged"]
