"""Matrices of many experts on a GPU: each pair of a token and an expert is multiplied by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from builder.lowering.schedules.gpu import block as b
from builder.lowering.schedules.gpu.block import Arg, Buffer, Device, Expr
from builder.lowering.schedules.gpu.gemv import Inputs, Results, products
from builder.lowering.schedules.gpu.weights import weight_of


def expert_linear(fields: Mapping[str, Any], device: Device) -> tirx.PrimFunc:
    """The kernel of an "expert_linear" (builder/ops/experts.py): pairs of token and expert, one by one."""
    weight, top, outputs = weight_of(fields), fields["top"], fields["outputs"]
    rows, tokens = b.size("rows"), b.size("tokens")
    pairs = rows * top if fields["shared"] else rows

    def body(x: Buffer, routes: Buffer, *rest: Buffer) -> None:
        stored, y = rest[:-1], rest[-1]

        read = Inputs(x, weight.k, "")

        def row_of(pair: Expr) -> tuple[Inputs, Expr, Expr]:
            device.wait()
            token = b.div(pair, top)
            number = b.load(routes, token * (2 * top) + b.mod(pair, top))
            return read, token if fields["shared"] else pair, T.Bind(tirx.Cast("int32", number) * outputs)

        def put(_pair: Expr, _n: Expr) -> Callable[..., Expr]:
            return lambda value: value

        products(device, weight, stored, pairs, row_of, Results(y, outputs, put))

    shape = (rows, 2 * top) if fields["shared"] else (tokens, 2 * top)
    args = [Arg("x", (rows, weight.k)), Arg("routes", shape), *weight.args, Arg("y", (pairs, outputs))]
    return b.kernel(args, body)
