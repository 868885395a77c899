"""Matrices of experts on the CPU: a pair of token and expert reads the rows of its expert, and no others.

Axes: P pairs (token and slot), N outputs, K inputs.
"""

from __future__ import annotations

from tvm import tirx

from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.packed_weights import OUTPUTS_PER_DOT, Transposed
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from llm_build.lowering.schedules.cpu.weights import weight_of
from llm_build.lowering.schedules.ir import T
from llm_build.ops.experts import ExpertLinearLabel

PARALLEL_PAIRS = 16  # pairs; from here on each thread takes pairs, below they share the outputs of one


def expert_linear(label: ExpertLinearLabel, isa: Isa) -> tirx.PrimFunc | None:
    """The kernel of an "expert_linear" (see builder/ops/experts.py)."""
    weight, top, outputs = weight_of(label.weight, isa), label.top, label.outputs
    if weight is None or isinstance(weight, Transposed) or outputs < OUTPUTS_PER_DOT:
        return None
    rows, tokens = v.size("rows"), v.size("tokens")
    pairs = rows * top if label.shared else rows

    def body(x: Buffer, routes: Buffer, *rest: Buffer) -> None:
        stored, y = rest[:-1], rest[-1]

        def pair(p: Expr, parallel: bool) -> None:
            number = v.load(routes, p // top * (2 * top) + p % top)
            first = T.Bind(tirx.Cast("int64", number) * outputs)
            prepared = weight.prepare(x, T.Bind(p // top if label.shared else p))
            with v.loop(-(-outputs // OUTPUTS_PER_DOT), parallel=parallel) as block:
                n = T.Bind(T.min(block * OUTPUTS_PER_DOT, outputs - OUTPUTS_PER_DOT))
                acc = v.scratch(OUTPUTS_PER_DOT * weight.lanes)
                for r in range(OUTPUTS_PER_DOT):
                    v.store(acc, r * weight.lanes, v.splat(0.0, weight.lanes), weight.lanes)
                with v.loop(weight.vectors) as step:
                    weight.dot(stored, prepared, first + n, step, acc)
                for r in range(OUTPUTS_PER_DOT):
                    dot = v.lane_sum(v.load(acc, r * weight.lanes, weight.lanes), weight.lanes)
                    v.store(y, p * outputs + n + r, dot)

        def spread() -> None:
            with v.loop(pairs, parallel=True) as p:
                pair(p, False)

        def alone() -> None:
            with v.loop(pairs) as p:
                pair(p, outputs * weight.k >= v.PARALLEL_MACS)

        v.if_else(pairs >= tirx.const(PARALLEL_PAIRS, "int64"), spread, alone)

    shape = (rows, 2 * top) if label.shared else (tokens, 2 * top)
    args = [Arg("x", (rows, weight.k)), Arg("routes", shape), *weight.args, Arg("y", (pairs, outputs))]
    return v.kernel(args, body)
