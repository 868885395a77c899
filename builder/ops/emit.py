"""Operations of a graph: what each computes, as plain loops, and a label that a target's schedules look up.

The loops are the meaning of the operation. They run anywhere, slowly; a schedule may replace the body of the function,
never what it computes. Equal labels are one function, however many layers use it. A function carries its label as JSON,
which is written and read here alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import lru_cache
from typing import Any, ClassVar, get_type_hints

from tvm import ir, relax, te, tirx
from tvm.relax.frontend import nn

LABEL = "llm_build.op"

_Compute = Callable[..., Any]  # (label, *te.Tensor) -> te.Tensor


class Label:
    """What a kernel is chosen and made by: a frozen dataclass of each operator, in the file that emits it, with the
    operator's name in ``op``. Fields are plain values, tuples of them, or frozen dataclasses of such."""

    op: ClassVar[str]
    types: ClassVar[dict[str, type[Label]]] = {}  # operator -> its label

    def __init_subclass__(cls) -> None:
        if "op" in cls.__dict__:
            Label.types[cls.op] = cls


def emit(
    label: Label,
    compute: _Compute,
    activations: Sequence[nn.Tensor],
    stored: Sequence[nn.Tensor],
    shape: Sequence[Any],
    dtype: str = "float32",
    function: str = "",
) -> nn.Tensor:
    """Put one operation into the graph that is being built and return its output.

    ``compute`` is a module-level function of (label, *activations, *stored). The first axis of an activation is a
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
    loops = prim_func(label, compute, signature)
    return nn.op.tensor_ir_op(loops, function or label.op, tensors, nn.Tensor.placeholder(list(shape), dtype))


@lru_cache(maxsize=256)
def prim_func(label: Label, compute: _Compute, signature: tuple[Any, ...]) -> tirx.PrimFunc:
    """The labelled function; ``signature`` is ((shape, dtype), ...), equal strings in shapes are one symbolic size."""
    symbols: dict[str, Any] = {}

    def size(axis: int | str) -> Any:
        return axis if isinstance(axis, int) else symbols.setdefault(axis, te.var(axis, "int64"))

    tensors = [
        te.placeholder([size(axis) for axis in shape], dtype, name=f"in{place}")
        for place, (shape, dtype) in enumerate(signature)
    ]
    function = te.create_prim_func([*tensors, compute(label, *tensors)])
    return with_label(function.without_attr("global_symbol"), label)


def with_label(function: tirx.PrimFunc, label: Label) -> tirx.PrimFunc:
    return function.with_attr(LABEL, json.dumps({"op": label.op, **fields_of(label)}, sort_keys=True))


def fields_of(label: Label) -> dict[str, Any]:
    """A label as plain data, without the operator's name."""
    assert is_dataclass(label)
    return asdict(label)


def label_of(function: Any) -> Label | None:
    """The label of a labelled function."""
    if not isinstance(function, tirx.PrimFunc) or function.attrs is None or LABEL not in function.attrs:
        return None
    table = json.loads(str(function.attrs[LABEL]))
    label: Label = _from_table(Label.types[table.pop("op")], table)
    return label


def _from_table(kind: Any, table: Mapping[str, Any]) -> Any:
    types = get_type_hints(kind)

    def value(name: str, plain: Any) -> Any:
        if isinstance(plain, dict):
            return _from_table(types[name], plain)
        return tuple(plain) if isinstance(plain, list) else plain

    return kind(**{name: value(name, plain) for name, plain in table.items()})


def label_called(module: ir.IRModule, value: Any) -> Label | None:
    """The label of the operation that a call in a graph is of; of all else none."""
    if not isinstance(value, relax.Call) or not value.op.same_as(ir.Op.get("relax.call_tir")):
        return None
    return label_of(module[value.args[0]])


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
