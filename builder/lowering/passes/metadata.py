"""What a library says about itself: sizes, parameters in call order, memory per function."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tvm import ir, relax, tirx, transform
from tvm.relax.expr_functor import PyExprVisitor, visitor

from llm_build.lowering.kernel_modules import backend
from llm_build.lowering.machine import Machine

_FUNCTION = "_metadata"


def bound_sizes(metadata: Mapping[str, int]) -> transform.Pass:
    """The largest value of each symbolic size, so that memory can be planned before anything runs."""
    bounds = {
        "seq_len": metadata["prefill_chunk_size"],
        "total_seq_len": metadata["context_window_size"],
        "batch_size": metadata["max_batch_size"],
    }

    def bound(module: ir.IRModule, _context: Any) -> ir.IRModule:
        result = ir.IRModule(dict(module.functions_items()), attrs=module.attrs)
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                result.update_func(variable, function.with_attr("tir_var_upper_bound", bounds))
        return result

    return transform.module_pass(bound, opt_level=0, name="BoundSizes")


class Memory:
    """Bytes of activations that each function of the library takes, as the memory plan has it."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    def measure(self) -> transform.Pass:
        def measure(module: ir.IRModule, _context: Any) -> ir.IRModule:
            for variable, function in module.functions_items():
                if isinstance(function, relax.Function):
                    storage = _Storage()
                    storage.visit_expr(function)
                    self.bytes[variable.name_hint] = storage.total
            return module

        return transform.module_pass(measure, opt_level=0, name="MeasureMemory")


@visitor
class _Storage(PyExprVisitor):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def visit_call_(self, call: Any) -> None:
        if call.op.same_as(ir.Op.get("relax.memory.alloc_storage")):
            sizes = [axis for axis in call.args[0].values if isinstance(axis, tirx.IntImm)]
            self.total += int(sizes[0]) if len(sizes) == len(call.args[0].values) == 1 else 0
        super().visit_call_(call)


def _describe(
    model: Any,
    family: str,
    scheme: str,
    target: Mapping[str, Any],
    memory: Mapping[str, int],
    cuts: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The content of ``_metadata`` and metadata.json; keys are those that MLC's runtimes read. Shapes, memory and heads
    are those of one rank. ``cuts``: how each stored tensor is cut for several ranks; of one rank none is."""
    layout = model.cache
    return {
        "model_type": family,
        "quantization": scheme,
        **model.metadata,
        "params": [
            {
                "name": name,
                "shape": [int(axis) for axis in parameter.shape],
                "dtype": parameter.dtype,
                "preprocs": [],
                "pipeline_stages": [0],
                **cuts.get(name, {}),
            }
            for name, parameter in model.named_parameters()
        ],
        "memory_usage": dict(sorted(memory.items())),
        "kv_state_kind": "kv_cache",
        "kv_cache": {
            "num_hidden_layers": layout.layers,
            "num_attention_heads": layout.query_heads,
            "num_key_value_heads": layout.key_heads,
            "head_dim": layout.head_dim,
        },
        "pipeline_parallel_stages": 1,
        "disaggregation": False,
        "model_task": "chat",
        "vocab_size": model.vocab,
        "target": _target_of(target),
        **backend(target["kind"]).metadata(model, target),
    }


def _target_of(target: Mapping[str, Any]) -> dict[str, Any]:
    """What a runtime must have to run the library."""
    host = {"cpu": target["cpu"], "features": list(target["features"]), "triple": target["triple"]}
    return host if target["kind"] == "cpu" else {"kind": target["kind"], "arch": list(target["arch"]), **host}


def attach(
    model: Any, family: str, scheme: str, machine: Machine, memory: Memory, cuts: Mapping[str, Mapping[str, Any]]
) -> transform.Pass:
    """A function ``_metadata`` that returns the description as JSON; ``cuts`` as of ``describe``."""

    def add(module: ir.IRModule, _context: Any) -> ir.IRModule:
        text = json.dumps(_describe(model, family, scheme, machine.description, memory.bytes, cuts), sort_keys=True)
        builder = relax.BlockBuilder(module)
        with builder.function(_FUNCTION, params=[]):
            builder.emit_func_output(ir.StringImm(text))
        return builder.get()

    return transform.module_pass(add, opt_level=0, name="AttachMetadata")
