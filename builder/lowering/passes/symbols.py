"""Name a library's functions for the linker."""

from __future__ import annotations

from typing import Any

from tvm import ir, relax, transform

from llm_build.lowering.machine import Machine


def attach(machine: Machine) -> transform.Pass:
    """Each function's symbol. In a library of objects, which an app may link beside others, those of kernels start with
    the machine's prefix: the runtime looks for ``__tvm_ffi_<prefix><name>``. (TVM's AttachGlobalSymbol knows prefixes
    too, but fails on kernels like ours.)"""
    prefix = "" if machine.library == "so" else machine.prefix

    def rewrite(module: ir.IRModule, _context: Any) -> ir.IRModule:
        functions = {}
        for variable, function in module.functions_items():
            name = variable.name_hint
            symbol = name if isinstance(function, relax.Function) else prefix + name
            functions[variable] = function.with_attr("global_symbol", symbol)
        return ir.IRModule(functions, attrs=module.attrs)

    return transform.module_pass(rewrite, opt_level=0, name="Symbols")
