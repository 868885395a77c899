"""Functions that work out sizes come in one order, whatever order TVM's table of addresses gave."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import tvm
from tvm import ir, tirx

from llm_build.lowering.passes import shape_functions


def working_out(*places: int) -> Any:
    """H[place] = 2 * H[0], place by place."""
    heap = tirx.decl_buffer((tirx.const(8, "int64"),), "int64", "H")

    def slot(place: int) -> Any:
        return tirx.const(place, "int64")

    def twice(place: int) -> Any:
        return tirx.BufferStore(heap, slot(2) * tirx.BufferLoad(heap, [slot(0)]), [slot(place)])

    stores = [twice(place) for place in places]
    return tirx.PrimFunc([heap], stores[0] if len(stores) == 1 else tirx.SeqStmt(stores))


def module_of(*functions: Any) -> Any:
    return ir.IRModule(
        {ir.GlobalVar(f"{shape_functions.NAME}{number or ''}"): function for number, function in enumerate(functions)}
    )


def bodies(module: Any) -> list[list[int]]:
    found = sorted((v.name_hint, f) for v, f in module.functions_items() if isinstance(f, tirx.PrimFunc))
    return [
        [int(store.indices[0]) for store in (f.body if isinstance(f.body, tirx.SeqStmt) else [f.body])]
        for _, f in found
    ]


def test_stores_come_by_place_and_equal_functions_are_one() -> None:
    for places in permutations((1, 2, 5)):
        before = module_of(working_out(*places), working_out(3), working_out(5, 2, 1))
        with tvm.transform.PassContext():
            after = shape_functions.order_shape_functions()(before)
        assert bodies(after) == [[1, 2, 5], [3]]
