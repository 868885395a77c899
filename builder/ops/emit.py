"""Operations of a graph: what each computes, as plain loops, and a label that a target's schedules look up.

The loops are the meaning of the operation. They run anywhere, slowly; a schedule may replace the body of the function,
never what it computes. Labels are JSON, so equal operations are one function, however many layers use it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tvm import ir, relax, te, tirx
from tvm.relax.frontend import nn

LABEL = "llm_build.op"

Compute = Callable[..., Any]  # (fields, *te.Tensor) -> te.Tensor


def emit(
    name: str,
    compute: Compute,
    fields: Mapping[str, Any],
    activations: Sequence[nn.Tensor],
    stored: Sequence[nn.Tensor],
    shape: Sequence[Any],
    dtype: str = "float32",
    function: str = "",
) -> nn.Tensor:
    """Put one operation into the graph that is being built and return its output.

    ``compute`` is a module-level function of (fields, *activations, *stored). The first axis of an activation is a
    number of rows: the function takes any, so that prefill and decode share it. Other axes are constants. ``function``:
    what it is called in the library, if not by the operation's name.
    """
    tensors = [*activations, *stored]
    rows = [str(tensor.shape[0]) for tensor in activations]
    names = {axis: f"rows{place or ''}" for place, axis in enumerate(dict.fromkeys(rows))}
    signature = tuple(
        ((names[rows[place]] if place < len(rows) else int(tensor.shape[0]), *map(int, tensor.shape[1:])), tensor.dtype)
        for place, tensor in enumerate(tensors)
    )
    loops = prim_func(name, compute, json.dumps(dict(fields), sort_keys=True), signature)
    return nn.op.tensor_ir_op(loops, function or name, tensors, nn.Tensor.placeholder(list(shape), dtype))


@lru_cache(maxsize=256)
def prim_func(name: str, compute: Compute, fields: str, signature: tuple[Any, ...]) -> tirx.PrimFunc:
    """The labelled function; ``signature`` is ((shape, dtype), ...), equal strings in shapes are one symbolic size."""
    symbols: dict[str, Any] = {}

    def size(axis: int | str) -> Any:
        return axis if isinstance(axis, int) else symbols.setdefault(axis, te.var(axis, "int64"))

    tensors = [
        te.placeholder([size(axis) for axis in shape], dtype, name=f"in{place}")
        for place, (shape, dtype) in enumerate(signature)
    ]
    function = te.create_prim_func([*tensors, compute(json.loads(fields), *tensors)])
    label = json.dumps({"op": name, **json.loads(fields)}, sort_keys=True)
    return function.without_attr("global_symbol").with_attr(LABEL, label)


def label_of(function: Any) -> dict[str, Any] | None:
    """The label of a labelled function: {"op": name, **fields}."""
    if not isinstance(function, tirx.PrimFunc) or function.attrs is None or LABEL not in function.attrs:
        return None
    label: dict[str, Any] = json.loads(str(function.attrs[LABEL]))
    return label


def label_called(module: ir.IRModule, value: Any) -> dict[str, Any]:
    """The label of the operation that a call in a graph is of; of all else {}."""
    if not isinstance(value, relax.Call) or not value.op.same_as(ir.Op.get("relax.call_tir")):
        return {}
    return label_of(module[value.args[0]]) or {}


def has_one_row(tensor: Any) -> bool:
    """Whether a tensor of a graph has one row, known to be one."""
    rows = tensor.ty.shape[0]
    return isinstance(rows, tirx.IntImm) and int(rows) == 1


def rewritten(mutator: Any, name: str) -> ir.IRModule:
    """The mutator's module, with what it makes of the function of this name."""
    for variable, function in list(mutator.module.functions_items()):
        if variable.name_hint == name:
            mutator.builder_.update_func(variable, mutator.visit_expr(function))
    made: ir.IRModule = mutator.builder_.get()
    return made
