"""One row times the weights of gate and up, and the gate's activation. Emitted by lowering/passes/fuse_gate_up.py.

Axes: K inputs.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.ops.gates import gelu_gate, silu_gate
from builder.ops.linear import product

GATES = {"silu_mul": silu_gate, "gelu_mul": gelu_gate}


def gated_linear(fields: Mapping[str, Any], x_1K: Any, *weight: Any) -> Any:
    """gate(first half of x @ weight.T) * second half."""
    return GATES[fields["gate"]](fields, product(fields, x_1K, *weight))
