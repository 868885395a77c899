"""Functions around the model that runtimes call: an embedding buffer and what happens between logits and a token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tvm import ir, relax, tirx, transform

from builder.lowering.machine import Machine

Table = tuple[str, tuple[Any, ...], str]  # name, shape (strings are symbolic), dtype
PROBS: Table = ("probs", ("batch_size", "vocab_size"), "float32")
TOKENS: Table = ("sorted_indices", ("batch_size", "vocab_size"), "int32")
SAMPLES: Table = ("sample_indices", ("num_samples",), "int32")

RETURNING: dict[str, tuple[str, Sequence[Table], Sequence[Table]]] = {  # kernel, arguments, results
    "argsort_probs": ("argsort", (PROBS,), (PROBS, TOKENS)),
    "sample_with_top_p": (
        "sample_with_top_p",
        (
            PROBS,
            TOKENS,
            ("uniform_samples", ("num_samples",), "float32"),
            SAMPLES,
            ("top_p", ("batch_size",), "float32"),
        ),
        (SAMPLES,),
    ),
    "sampler_take_probs": (
        "take_probs",
        (
            PROBS,
            TOKENS,
            SAMPLES,
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
IN_PLACE = {
    "apply_logit_bias_inplace": "apply_logit_bias",
    "apply_penalty_inplace": "apply_penalty",
    "apply_bitmask_inplace": "apply_bitmask",
}


def attach(vocab: int, hidden: int, metadata: Mapping[str, int], machine: Machine) -> transform.Pass:
    """Add the functions that MLC's runtimes look up beside the model's own."""
    kernels, traits = machine.kernels.sampling, machine.traits
    logits: Table = ("logits", ("batch_size", 1, vocab), "float32")
    temperature: Table = ("temperature", ("batch_size",), "float32")

    def add(module: ir.IRModule, _context: Any) -> ir.IRModule:
        builder = relax.BlockBuilder(module)
        embedding_buffer(builder, metadata["prefill_chunk_size"], hidden)
        for name, (kernel, arguments, results) in RETURNING.items():
            returning(builder, name, getattr(kernels, kernel)(traits), arguments, results)
        softmax = kernels.softmax_with_temperature(vocab, traits)
        returning(builder, "softmax_with_temperature", softmax, (logits, temperature), (logits,))
        result = builder.get()
        for name, kernel in IN_PLACE.items():
            result[name] = getattr(kernels, kernel)(traits).with_attr("global_symbol", name)
        return result

    return transform.module_pass(add, opt_level=0, name="AttachSampling")


def embedding_buffer(builder: Any, tokens: int, hidden: int) -> None:
    """alloc_embedding_tensor() -> (tokens, hidden) float32."""
    with builder.function("alloc_embedding_tensor", params=[]):
        shape = relax.ShapeExpr([tokens, hidden])
        allocated = builder.emit(relax.op.builtin.alloc_tensor(shape, dtype="float32", runtime_device_index=0))
        builder.emit_func_output(allocated)


def returning(builder: Any, name: str, kernel: Any, arguments: Sequence[Table], results: Sequence[Table]) -> None:
    """A graph function that allocates its results and calls the kernel."""
    sizes: dict[str, Any] = {}

    def tensor(table: Table) -> Any:
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
