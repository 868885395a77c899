"""verify.dequantized: transformers in float32 over the weights as the artifact stores them.

A library that computes in float32 must agree with this to float rounding, whatever the scheme costs in accuracy. (With
rounded inputs it cannot: where float rounding takes one to the next step, the layers after it see another input; see
conf/verify/default.yaml.) The
config is the checkpoint's own, not the recipe's architecture: a wrong override shows here. Each weight is compared with
its source on the way (see reconstruction). Memory: see source_model; one parameter is dequantized at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from llm_build.architectures.weights import Entry, read_map, to_source
from llm_build.core.json_text import indented
from llm_build.core.step_io import File, InputFiles, Json, Out
from llm_build.formats.parameter_table import TensorLocation, read_parameter_table
from llm_build.quant import reference as packing
from llm_build.quant import scaling
from llm_build.quant.layout import Scheme, is_transposed, parse_scheme, stored_tensors
from llm_build.quant.storage import NUMPY_DTYPE, widen
from llm_build.steps.ports import group, one
from llm_build.steps.reference import prepare, write
from llm_build.verification import quantized, reconstruction, source_model
from llm_build.verification.inputs import round_inputs

Read = Callable[[str], np.ndarray]

BLOCK_BYTES = 1 << 20  # of float32 dequantized at a time, so that it stays in the cache


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Write logits.npy, tokens.npy and reference.json as verify.reference does, and reconstruction.json.

    Args:
        params: those of verify.reference, "scheme" and "method", the name of how its integers were chosen.
        inputs: those of verify.reference, and "shards" {"<item>/params_shard_<i>.bin"}, "weight_map", "parameters", and
            for awq "scales", what its weights were multiplied with.
        out: its context holds "text", the path of the text.

    Raises:
        UserError: the text or the tokenizer do not serve; transformers cannot load the checkpoint.
        StepError: the dequantized model is not finite.
    """
    entries = read_map(json.loads(one(inputs["weight_map"]).path.read_text())).entries
    rule = parse_scheme(params["scheme"])
    stored = _stored(read_parameter_table(one(inputs["parameters"]).path.read_bytes()), group(inputs["shards"]))
    config = json.loads(one(inputs["config"]).path.read_text())
    layout = json.loads(one(inputs["layout"]).path.read_text())["tensors"]
    _, original_tensor = quantized.open_checkpoint(config, layout, group(inputs["tensors"]))
    scales = group(inputs["scales"]) if "scales" in inputs else {}
    compared: dict[str, reconstruction.Reconstruction] = {}
    equal_experts: dict[str, tuple[int, int]] = {}  # by router

    @lru_cache(maxsize=1)  # q, k and v are asked for one after another, and are one parameter
    def parameter(index: int) -> np.ndarray:
        entry = entries[index]
        original = scaled(entry, assemble(entry, lambda name: original_tensor(name).numpy()), scales)
        weight, compared[entry.name] = _dequantize(entry, rule, params["method"], stored, original)
        if entry.parameter.kind == "router" and (equal := reconstruction.equal_rows(weight)):
            equal_experts[entry.name] = equal
        return weight

    def fetch(name: str) -> source_model.Tensor:
        indices = [i for i, entry in enumerate(entries) if any(s.tensor == name for s in entry.sources)]
        arrays = {entries[i].name: parameter(i) for i in indices}
        tensor = to_source([entries[i] for i in indices], arrays)[name]
        return source_model.as_tensor(tensor)

    tokens, config = prepare(params, inputs, out)
    shapes = {s.tensor: list(s.shape) for entry in entries for s in entry.sources}
    model, sources = source_model.load_named(config, shapes, fetch, out.progress)
    round_inputs(model, entries, sources, rule)
    logits = source_model.logits(model, tokens, out.threads)
    write(logits, tokens, params, out, source_model.rounding(model, tokens, logits))
    assert len(compared) == len(entries), "the reference ran without some parameters"
    report = {**reconstruction.report(compared), "equal_experts": equal_experts}
    out.path("reconstruction.json").write_bytes(indented(report))


def _dequantize(
    entry: Entry, rule: Scheme, method: str, stored: Read, original: np.ndarray
) -> tuple[np.ndarray, reconstruction.Reconstruction]:
    """A parameter in float32 as its stored tensors give it, and how it compares with what it was made from."""
    shape, rule = entry.parameter, rule.for_parameter(entry.name)
    arrays = {tensor.role: stored(tensor.name) for tensor in stored_tensors(shape, rule)}
    if "plain" in arrays:
        weight = widen(arrays["plain"], rule.dtype)
        return weight, reconstruction.plain(original, weight, rule)
    if is_transposed(shape, rule):
        arrays = {role: array.T for role, array in arrays.items()}
    if (rule.kind != "group" or rule.zero_point) and method != reconstruction.IMPORTED:
        method = "rtn"
    if method == "gptq" and shape.kind not in ("linear", "head"):
        method = "mse"  # it has no inputs
    outputs, width = shape.shape
    if rule.scale_per == "tensor":
        arrays["scale"] = np.broadcast_to(arrays["scale"], (outputs, 1))
    weight = np.empty((outputs, width), np.float32)
    rows = max(1, BLOCK_BYTES // (4 * width))
    for start in range(0, outputs, rows):
        some = slice(start, start + rows)
        zeros = arrays["zero"][some] if "zero" in arrays else None
        weight[some] = packing.dequantize(arrays["weight"][some], arrays["scale"][some], width, rule, zeros)
    return weight, reconstruction.grouped(original, weight, arrays["scale"], rule, method)


def assemble(entry: Entry, source: Read) -> np.ndarray:
    """A parameter from the checkpoint's tensors, in float32, as its weight map entry says."""
    tensors = {name: source(name) for name in dict.fromkeys(part.tensor for part in entry.sources)}
    parts = [tensors[part.tensor][part.start : part.stop] for part in entry.sources]
    if entry.op == "transpose":
        return parts[0].T
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def scaled(entry: Entry, weight: np.ndarray, scales: Mapping[str, File]) -> np.ndarray:
    """A parameter as awq scales it before it is rounded."""
    shape = entry.parameter.shape
    scaling_of = scaling.read(entry.name, shape[0], scales)
    if scaling_of is None:
        return weight
    result = np.array(weight.reshape(shape[0], -1), np.float32)
    scaling_of.apply(result, 0)
    return result.reshape(shape)


def _stored(table: Sequence[TensorLocation], shards: Mapping[str, File]) -> Read:
    """Read a stored tensor by name, out of the shard that parameters.json says it is in."""
    locations = {location.name: location for location in table}
    files = {name.rpartition("/")[2]: file for name, file in shards.items()}

    def read(name: str) -> np.ndarray:
        location = locations[name]
        file = files[f"params_shard_{location.shard}.bin"]
        data = np.fromfile(file.path, np.uint8, location.nbytes, offset=file.offset + location.offset)
        return data.view(NUMPY_DTYPE[location.dtype]).reshape(location.shape)

    return read
