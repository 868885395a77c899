"""Kernels that start before the kernel in front of them is done: CUDA's programmatic dependent launch, from sm_90 on.

A kernel's blocks come up, and matrix products ask for their weights, while the kernel before still runs; a decoded
token is some 300 kernels of a few microseconds, so this is a good part of it. Each kernel lets the next one start
at once, and waits for the one before, all of it, before it reads or writes anything but weights. None may end
without that wait, or what comes after it would wait for too little.
https://docs.nvidia.com/cuda/cuda-programming-guide, "Programmatic Dependent Launch"; PTX ISA, griddepcontrol.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tvm import ir, transform

from builder.targets import cuda

READY = "inputs_ready"  # what a kernel calls that has a better place for the wait than its start
LAUNCH = "tirx.kernel_launch_params"
EARLY = "tirx.use_programtic_dependent_launch"  # as TVM's runtime spells it (src/runtime/metadata.h)
KERNEL = re.compile(r'^extern "C" __global__ void [^;{]*\{\n', re.MULTILINE)


def is_possible(target: Mapping[str, Any]) -> bool:
    """Whether all architectures of the target have it."""
    return target["kind"] == "cuda" and cuda.starts_early(target["arch"])


def tagged() -> transform.Pass:
    """For device functions: TVM's runtime launches them early."""

    def rewrite(module: ir.IRModule, _context: Any) -> ir.IRModule:
        functions = {
            variable: function.with_attr(LAUNCH, [*function.attrs[LAUNCH], EARLY])
            for variable, function in module.functions_items()
        }
        return ir.IRModule(functions, attrs=module.attrs)

    return transform.module_pass(rewrite, opt_level=0, name="EarlyLaunch")


def waiting(source: str) -> str:
    """The source of kernels with the waits in it."""
    starts = [found.end() for found in KERNEL.finditer(source)]
    parts, ends = [cuda.EARLY_START, source[: starts[0]] if starts else source], [*starts[1:], len(source)]
    for start, end in zip(starts, ends, strict=False):
        wait = "" if f"{READY}()" in source[start:end] else f"  {READY}();\n"
        parts += [f"  next_may_start();\n{wait}", source[start:end]]
    return "".join(parts)
