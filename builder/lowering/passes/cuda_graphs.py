"""Runs of kernels with fixed arguments as CUDA graphs: captured at the first call, then launched as one."""

from __future__ import annotations

from typing import Any

from tvm import ir, relax, transform

BY_BATCH = "batch_decode"  # a graph is captured for each number of sequences
SYMBOLS = "relax.rewrite_cuda_graph.capture_symbolic_vars"


def captured() -> transform.Pass:
    """Comes after the memory plan, as only planned memory keeps its place."""

    def capture(module: ir.IRModule, _context: Any) -> ir.IRModule:
        result = ir.IRModule(dict(module.functions_items()), attrs=module.attrs)
        for variable, function in module.functions_items():
            if variable.name_hint == BY_BATCH:
                result.update_func(variable, function.with_attr(SYMBOLS, ["batch_size"]))
        with transform.PassContext(config={"relax.backend.use_cuda_graph": True}):
            return relax.transform.RewriteCUDAGraph()(result)

    return transform.module_pass(capture, opt_level=0, name="CudaGraphs")
