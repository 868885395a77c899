"""Give the paged KV cache of the graph its kernels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from tvm import ir, relax, transform
from tvm.relax.expr_functor import PyExprMutator, mutator

from llm_build.lowering.choices import OperatorKernel, name_of, recording
from llm_build.lowering.machine import Machine
from llm_build.ops.kv_cache import CREATE, CacheLayout

_ATTENTION_KIND_MHA, _ROPE_MODE_NORMAL = 0, 1  # as TVM's runtime numbers them
_SLIDING_LAYERS = 1024  # window of single layers: none here has one


def with_kernels(machine: Machine, chosen: list[OperatorKernel] | None = None) -> transform.Pass:
    """Replace the graph's cache creation by TVM's, with the machine's kernels. ``chosen`` gets what was chosen."""

    def rewrite(module: ir.IRModule, _context: Any) -> ir.IRModule:
        return _Creation(module, machine, [] if chosen is None else chosen).run()

    return transform.module_pass(rewrite, opt_level=0, name="KVCache")


def _layout_of(text: str) -> CacheLayout:
    fields = json.loads(text)
    return CacheLayout(**{**fields, "inv_freq": tuple(fields["inv_freq"])})


@mutator
class _Creation(PyExprMutator):  # type: ignore[misc]
    def __init__(self, module: ir.IRModule, machine: Machine, chosen: list[OperatorKernel]) -> None:
        super().__init__(module)
        self.machine, self.chosen = machine, chosen

    def run(self) -> ir.IRModule:
        for variable, function in list(self.builder_.get().functions_items()):
            if isinstance(function, relax.Function) and variable.name_hint == "create_tir_paged_kv_cache":
                self.builder_.update_func(variable, self.visit_expr(function))
        return self.builder_.get()

    def visit_call_(self, call: Any) -> Any:
        call = super().visit_call_(call)
        if call.op.same_as(ir.Op.get("relax.call_pure_packed")) and call.args[0].global_symbol == CREATE:
            return self.create(call.args[1], _layout_of(str(call.args[2].value)))
        return call

    def create(self, sizes: Any, layout: CacheLayout) -> Any:
        attention, cache = self.machine.kernels.attention, self.machine.kernels.cache

        def add(name: str, make: Any) -> Any:
            with recording() as choices:
                made = make(layout, self.machine.traits)
            variable = self.builder_.add_func(made, name)
            self.chosen.append(OperatorKernel(variable.name_hint, name, {}, name_of(make), choices))
            return variable

        def kernel(name: str, make: Any) -> Any:
            return relax.Tuple([ir.StringImm("tirx"), add(name, make)])

        nothing, number = relax.Tuple([]), relax.prim_value
        return relax.call_pure_packed(
            "vm.builtin.paged_attention_kv_cache_create",
            relax.ShapeExpr([*sizes.values, _SLIDING_LAYERS]),
            relax.ShapeExpr([0, layout.layers]),
            number(layout.query_heads),
            number(layout.key_heads),
            number(layout.head_dim),
            number(layout.head_dim),
            relax.ShapeExpr([_ATTENTION_KIND_MHA] * layout.layers),
            number(0),  # no disaggregation
            number(_ROPE_MODE_NORMAL),
            number(1),  # rotary scale and base: unused, the frequencies are constants of the kernel
            number(1),
            self.frequencies(layout),
            relax.const(0.0, layout.dtype),  # the cache's dtype
            add("kv_append", cache.append),
            number(0),  # no latent attention
            kernel("attention_prefill_ragged", attention.prefill_ragged),
            kernel("attention_prefill_paged", attention.prefill_paged),
            kernel("attention_decode", attention.decode),
            nothing,  # sliding window: prefill, decode
            nothing,
            nothing,  # token trees: in the pages, among the new tokens
            nothing,
            nothing,  # latent attention
            relax.Tuple([add("attention_merge", cache.merge)]),
            add("split_rotary", cache.split_rotary),
            add("kv_copy_page", cache.copy_single_page),
            add("kv_debug_get", cache.debug_get),
            add("kv_compact", cache.compact),
            ty_args=relax.AnyType(),
        )

    def frequencies(self, layout: CacheLayout) -> Any:
        """What split_rotary gets: the frequencies as a tensor, or a number where they are constants of the kernel."""
        if not self.machine.kernels.cache.FREQUENCIES_ARE_PASSED or not layout.inv_freq:
            return relax.prim_value(0)
        return relax.const(np.asarray(layout.inv_freq, np.float32))
