"""Functions around the model that runtimes call: an embedding buffer and what happens between logits and a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm import ir, relax, tirx, transform

from llm_build.lowering.machine import Machine

_Tensor = tuple[str, tuple[Any, ...], str]  # name, shape (strings are symbolic), dtype
_PROBS: _Tensor = ("probs", ("batch_size", "vocab_size"), "float32")
_TOKENS: _Tensor = ("sorted_indices", ("batch_size", "vocab_size"), "int32")
_SAMPLES: _Tensor = ("sample_indices", ("num_samples",), "int32")

_RETURNING: dict[str, tuple[str, Sequence[_Tensor], Sequence[_Tensor]]] = {  # kernel, arguments, results
    "argsort_probs": ("argsort", (_PROBS,), (_PROBS, _TOKENS)),
    "sample_with_top_p": (
        "sample_with_top_p",
        (
            _PROBS,
            _TOKENS,
            ("uniform_samples", ("num_samples",), "float32"),
            _SAMPLES,
            ("top_p", ("batch_size",), "float32"),
        ),
        (_SAMPLES,),
    ),
    "sampler_take_probs": (
        "take_probs",
        (
            _PROBS,
            _TOKENS,
            _SAMPLES,
            ("sampling_result", ("num_samples",), "int32"),
            ("offsets", ("num_positions",), "int32"),
        ),
        (
            ("values", ("num_samples",), "float32"),
            ("top_values", ("num_positions",), "float32"),
            ("top_tokens", ("num_positions",), "int32"),
        ),
    ),
}
_IN_PLACE = {
    "apply_logit_bias_inplace": "apply_logit_bias",
    "apply_penalty_inplace": "apply_penalty",
    "apply_bitmask_inplace": "apply_bitmask",
}


def attach(vocab: int, hidden: int, metadata: Mapping[str, int], machine: Machine) -> transform.Pass:
    """Add the functions that MLC's runtimes look up beside the model's own."""
    kernels, traits = machine.kernels.sampling, machine.traits
    logits: _Tensor = ("logits", ("batch_size", 1, vocab), "float32")
    temperature: _Tensor = ("temperature", ("batch_size",), "float32")

    def add(module: ir.IRModule, _context: Any) -> ir.IRModule:
        builder = relax.BlockBuilder(module)
        _add_embedding_buffer(builder, metadata["prefill_chunk_size"], hidden)
        for name, (kernel, arguments, results) in _RETURNING.items():
            _add_returning(builder, name, getattr(kernels, kernel)(traits), arguments, results)
        softmax = kernels.softmax_with_temperature(vocab, traits)
        _add_returning(builder, "softmax_with_temperature", softmax, (logits, temperature), (logits,))
        result = builder.get()
        for name, kernel in _IN_PLACE.items():
            result[name] = getattr(kernels, kernel)(traits).with_attr("global_symbol", name)
        return result

    return transform.module_pass(add, opt_level=0, name="AttachSampling")


def _add_embedding_buffer(builder: Any, tokens: int, hidden: int) -> None:
    """alloc_embedding_tensor() -> (tokens, hidden) float32."""
    with builder.function("alloc_embedding_tensor", params=[]):
        shape = relax.ShapeExpr([tokens, hidden])
        allocated = builder.emit(relax.op.builtin.alloc_tensor(shape, dtype="float32", runtime_device_index=0))
        builder.emit_func_output(allocated)


def _add_returning(
    builder: Any, name: str, kernel: Any, arguments: Sequence[_Tensor], results: Sequence[_Tensor]
) -> None:
    """A graph function that allocates its results and calls the kernel."""
    sizes: dict[str, Any] = {}

    def tensor(table: _Tensor) -> Any:
        shape = [a if isinstance(a, int) else sizes.setdefault(a, tirx.Var(a, "int64")) for a in table[1]]
        return relax.TensorType(shape, table[2])

    parameters = [relax.Var(table[0], tensor(table)) for table in arguments]
    types = [tensor(table) for table in results]
    with builder.function(name, parameters):
        with builder.dataflow():
            variable = builder.add_func(kernel, f"{name}_kernel")
            call = relax.call_tir(variable, parameters, types if len(types) > 1 else types[0])
            output = builder.emit_output(call)
        builder.emit_func_output(output)
