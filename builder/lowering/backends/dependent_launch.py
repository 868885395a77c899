"""Programmatic dependent launch (PDL) on CUDA, from sm_90 on: a kernel starts before the one in front of it is done.

A kernel's blocks come up, and matrix products ask for their weights, while the kernel before still runs; a decoded
token is some 300 kernels of a few microseconds, so this is a good part of it. Each kernel lets the next one start
at once, and waits for the one before, all of it, before it reads or writes anything but weights and the page table,
which no kernel writes: the runtime copies it to the device, in front of a token's first kernel. None may end without
that wait, or what comes after it would wait for too little.
https://docs.nvidia.com/cuda/cuda-programming-guide, "Programmatic Dependent Launch"; PTX ISA, griddepcontrol.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import tvm_ffi
from tvm import ir, tirx, transform

from llm_build.targets import cuda

WAIT = "inputs_ready"  # what a kernel calls that has a better place for the wait than its start
TRIGGER = "next_may_start"  # what one calls that lets the next one start later than at its own start
OFF = "starts_late"  # what one calls that does not start early
_LAUNCH = "tirx.kernel_launch_params"
_DEPENDENT = "tirx.use_programtic_dependent_launch"  # as TVM's runtime spells it (src/runtime/metadata.h)
_DYNAMIC_MEMORY = "tirx.use_dyn_shared_memory"  # its runtime wants this one last
_KERNEL = re.compile(r'^extern "C" __global__ void [^;{]*\{\n', re.MULTILINE)


def is_possible(target: Mapping[str, Any]) -> bool:
    """Whether all architectures of the target have it."""
    return target["kind"] == "cuda" and cuda.supports_pdl(target["arch"])


def mark_kernels() -> transform.Pass:
    """For device functions: TVM's runtime launches them by PDL. Those of many equal blocks that compute for long opt
    out: they would go to where the kernel before leaves room, and not to all multiprocessors alike (a prefill of 128
    tokens took a fifth longer)."""

    def rewrite(module: ir.IRModule, _context: Any) -> ir.IRModule:
        functions = {
            variable: function if _is_opted_out(function) else function.with_attr(_LAUNCH, _tags(function))
            for variable, function in module.functions_items()
        }
        return ir.IRModule(functions, attrs=module.attrs)

    return transform.module_pass(rewrite, opt_level=0, name="DependentLaunch")


def _tags(function: Any) -> list[str]:
    """What the runtime is told of a function's launch, with PDL."""
    tags = [str(tag) for tag in function.attrs[_LAUNCH]]
    own = [tag for tag in tags if tag != _DYNAMIC_MEMORY]
    return [*own, _DEPENDENT, *tags[len(own) :]]


def _is_opted_out(function: Any) -> bool:
    """Whether a device function says that it is launched without PDL."""
    calls = []

    def visit(statement: Any) -> None:
        call = statement.value
        if isinstance(call, ir.Call) and call.op.name == "tirx.call_extern" and str(call.args[0].value) == OFF:
            calls.append(statement)

    tvm_ffi.structural_walk(function.body, (tirx.Evaluate, visit))
    return bool(calls)


def insert_waits(source: str) -> str:
    """The source of kernels with the waits in it. Without __restrict__: what may not be written by others may be read
    at any time, so that the compiler moves loads to either side of a wait."""
    source = source.replace(" __restrict__", "")
    starts = [match.end() for match in _KERNEL.finditer(source)]
    parts, ends = [cuda.PDL_FUNCTIONS, source[: starts[0]] if starts else source], [*starts[1:], len(source)]
    for start, end in zip(starts, ends, strict=False):
        wait = "" if f"{WAIT}()" in source[start:end] else f"  {WAIT}();\n"
        trigger = "" if f"{TRIGGER}()" in source[start:end] else f"  {TRIGGER}();\n"
        parts += [trigger + wait, source[start:end]]
    return "".join(parts)
