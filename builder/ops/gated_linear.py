"""One row times the weights of gate and up, and the gate's activation. Emitted by lowering/passes/fuse_gate_up.py.

Axes: K inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from llm_build.ops.gates import GateLabel, gelu_gate, silu_gate
from llm_build.ops.linear import LinearLabel, product
from llm_build.ops.weights import StoredWeight

GATES = {"silu_mul": silu_gate, "gelu_mul": gelu_gate}


@dataclass(frozen=True, slots=True)
class GatedLinearLabel(GateLabel):
    op: ClassVar[str] = "gated_linear"

    gate: str  # silu_mul | gelu_mul
    weight: StoredWeight


def gated_linear(label: GatedLinearLabel, x_1K: Any, *weight: Any) -> Any:
    """gate(first half of x @ weight.T) * second half."""
    return GATES[label.gate](label, product(LinearLabel(label.weight, False, False), x_1K, *weight))
