"""Operations of model graphs, each with plain loops that define it: what models and lowering both stand on.

Operators and kernels line up file by file: the kernel of an operator that ``ops/NAME.py`` emits is the function of the
operator's name in ``lowering/schedules/cpu/NAME.py`` and ``lowering/schedules/gpu/NAME.py``. So what a family's graph
imports of this folder says which kernels its library has.

    operators   embedding, linear, norms, gates, rows, experts, gemma, rotary
                gated_linear    emitted by the pass fuse_gate_up
    on demand   rounded_inputs  of schemes that round the inputs of layers
                collectives     of graphs on several ranks
    no kernel   emit, weights, byte_codes, ranks, rope; kv_cache (its kernels: attention.py, cache.py)

An operator on a CPU may go without a kernel: it keeps its loops. What is used on demand is loaded by name, where it is
needed, so that no other library's key holds it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

ON_DEMAND = {"rounded_inputs": "llm_build.ops.rounded_inputs", "collectives": "llm_build.ops.collectives"}


def load(name: str) -> Any:
    """A module of operators that only some graphs have."""
    return import_module(ON_DEMAND[name])
