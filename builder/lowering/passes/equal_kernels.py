"""Device functions that are equal but for their names become one: products of one shape of tile, whatever their sizes.

Each is compiled by itself, and the compiler is most of the time that a library takes.
"""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir

_NAME = "global_symbol"
_LAUNCH = "tirx.call_ffi_kernel"


def merge(host: ir.IRModule, device: ir.IRModule) -> tuple[ir.IRModule, ir.IRModule]:
    """The module of what launches kernels, and that of the kernels, before either is code."""
    kept: dict[int, list[tuple[Any, Any, Any]]] = {}
    renamed: dict[str, str] = {}
    for variable, function in device.functions_items():
        bare = function.without_attr(_NAME)
        alike = kept.setdefault(tvm_ffi.structural_hash(bare, map_free_vars=True), [])
        equal = next((one for one in alike if tvm_ffi.structural_equal(one[1], bare, map_free_vars=True)), None)
        if equal is None:
            alike.append((variable, bare, function))
        else:
            renamed[str(function.attrs[_NAME])] = str(equal[2].attrs[_NAME])
    if not renamed:
        return host, device

    def launch(call: Any) -> Any:
        if call.op.name != _LAUNCH or str(call.args[0].value) not in renamed:
            return call
        name, *others = call.args
        return ir.Call(call.op, [ir.StringImm(renamed[str(name.value)]), *others], call.attrs, ret_ty=call.ty)

    functions = {v: f.with_body(tvm_ffi.structural_map(f.body, (ir.Call, launch))) for v, f in host.functions_items()}
    left = {variable: function for alike in kept.values() for variable, _, function in alike}
    return ir.IRModule(functions, attrs=host.attrs), ir.IRModule(left, attrs=device.attrs)
