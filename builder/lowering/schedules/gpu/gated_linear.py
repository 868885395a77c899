"""One row times the weights of gate and up, and the gate's activation, on a GPU. Axes: N outputs, K inputs."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.gpu.gates import GATES
from llm_build.lowering.schedules.gpu.gemv import Inputs, Results, multiply_each_row
from llm_build.lowering.schedules.gpu.weights import weight_of
from llm_build.ops.gated_linear import GatedLinearLabel


def gated_linear(label: GatedLinearLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """One row times gate and up weights, and the gate's activation (lowering/passes/fuse_gate_up.py): an output's two
    products are in the same threads."""
    weight, width, activated = weight_of(label.weight), label.width, GATES[label.gate]

    def body(x: Buffer, *rest: Buffer) -> None:
        stored, y = rest[:-1], rest[-1]

        def row_of(row: Expr) -> tuple[Inputs, Expr, Expr]:
            return Inputs(x, weight.k), row, b.i32(0)

        def epilogue(_row: Expr, _n: Expr) -> Callable[..., Expr]:
            return lambda gate, up: activated(gate) * up

        multiply_each_row(traits, weight, stored, b.i32(1), row_of, Results(y, width, epilogue, rows_per_output=2))

    return b.kernel([Arg("x", (1, weight.k)), *weight.args, Arg("y", (1, width))], body)
