"""Runs of kernels with fixed arguments as CUDA graphs: captured at the first call, then launched as one.

A kernel does not start early at the edge of a graph, and the cache's kernels, two edges a layer, are in none. Where
weights are large and kernels may start early, a token is as fast without, as the host keeps ahead of the GPU, and the
runtime here captures the whole of it (builder/runtime/token_graph.py). Measured on H200s with a 7B Llama, tokens/s
with and without, before that: q0f16 266 and 274, on two GPUs 400 and 425; q4f16_1 400 and 391.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from tvm import DataType, ir, relax, transform

from llm_build.lowering.backends import dependent_launch

_BATCH_DECODE = "batch_decode"  # a graph is captured for each number of sequences
_LARGE_BYTES = 2e9  # bytes of weights on one GPU
_SYMBOLS = "relax.rewrite_cuda_graph.capture_symbolic_vars"


def library_captures(model: Any, target: Mapping[str, Any]) -> bool:
    """Whether a library for this GPU captures graphs itself."""
    weight_bytes = sum(prod(map(int, each.shape)) * DataType(each.dtype).bits // 8 for each in model.parameters())
    return not dependent_launch.is_possible(target) or weight_bytes < _LARGE_BYTES


def capture_graphs() -> transform.Pass:
    """Comes after the memory plan, as only planned memory keeps its place."""

    def capture(module: ir.IRModule, _context: Any) -> ir.IRModule:
        result = ir.IRModule(dict(module.functions_items()), attrs=module.attrs)
        for variable, function in module.functions_items():
            if variable.name_hint == _BATCH_DECODE:
                result.update_func(variable, function.with_attr(_SYMBOLS, ["batch_size"]))
        with transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
            return relax.transform.RewriteCUDAGraph()(result)

    return transform.module_pass(capture, opt_level=0, name="CudaGraphs")
