"""What a quantized checkpoint stands for, slowly: weight = (value - zero) * scale in float32, one value at a time in
index arithmetic. Written from the formats' descriptions and not from what imports them (builder/formats/quantized), so
that verify can hold one against the other.

W words, w the word and p the place that value i of a run of packed ones has: w = i // n, p = i % n, n = 32 / bits.

- AWQ gemm: outputs are packed, output o of eight at the place where 0, 2, 4, 6, 1, 3, 5, 7 has it.
- GPTQ: qweight packs inputs, qzeros outputs, less one unless checkpoint_format is gptq_v2.
- compressed-tensors: packs inputs, zero points along the outputs; packed values are 2^(bits - 1) above signed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from llm_build.core.step_io import File, Json
from llm_build.verification import source_model

_DTYPES = {
    "I64": torch.int64, "I32": torch.int32, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, **source_model.DTYPES
}  # fmt: skip
_MARKS = (".qweight", ".weight_packed", ".weight_scale")
_PARTS = (".qzeros", ".scales", ".g_idx", ".weight_zero_point", ".weight_shape", ".input_scale", ".input_zero_point")

ROWS = 256  # outputs at a time: what is in between takes several times the room of the weights

Read = Callable[[str], np.ndarray]  # tensor name -> its values: words as int64 from 0, others in float32


def open_checkpoint(
    config: Mapping[str, Json], layout: Mapping[str, Json], tensors: Mapping[str, File]
) -> tuple[dict[str, list[int]], source_model.Fetch]:
    """({tensor: shape}, tensor -> float32) of a checkpoint as transformers would have it without quantization.

    Args:
        config: config.json.
        layout: {tensor: {"dtype", "shape"}}.
        tensors: {"tensor/<name>": File}.
    """
    quantization = config.get("quantization_config") or None

    def values(name: str) -> np.ndarray:
        return _values(tensors[f"tensor/{name}"], layout[name]["dtype"], layout[name]["shape"])

    def fetch(name: str) -> source_model.Tensor:
        if quantization is None or (name in layout and name.removesuffix("weight") + "weight_scale" not in layout):
            return source_model.read(tensors[f"tensor/{name}"], layout[name]["dtype"], layout[name]["shape"])
        weight = _weight(name.removesuffix(".weight"), quantization, layout, values)
        return source_model.as_tensor(weight)

    if quantization is None:  # what is no float is no weight: GPT-NeoX's masks
        return {name: entry["shape"] for name, entry in layout.items() if entry["dtype"] in source_model.DTYPES}, fetch
    shapes = {name: entry["shape"] for name, entry in layout.items()}
    stems = {name.removesuffix(mark) for name in layout for mark in _MARKS if name.endswith(mark)}
    plain = {name: shape for name, shape in shapes.items() if not name.endswith((*_MARKS, *_PARTS))}
    return plain | {f"{stem}.weight": _shape(stem, quantization, layout) for stem in sorted(stems)}, fetch


def _values(file: File, dtype: str, shape: list[int]) -> np.ndarray:
    data = torch.from_numpy(np.fromfile(file.path, np.uint8, file.nbytes, offset=file.offset))
    values = data.view(_DTYPES[dtype]).reshape(shape)
    if dtype == "I32":
        return np.asarray(values.numpy().astype(np.int64) & 0xFFFFFFFF)
    return np.asarray(values.to(torch.float32).numpy())


def _shape(stem: str, quantization: Mapping[str, Any], layout: Mapping[str, Json]) -> list[int]:
    if f"{stem}.weight" in layout:
        return list(layout[f"{stem}.weight"]["shape"])
    if f"{stem}.weight_packed" in layout:
        rows, words = layout[f"{stem}.weight_packed"]["shape"]
        return [rows, words * 32 // _weights(quantization)["num_bits"]]
    rows, columns = layout[f"{stem}.qweight"]["shape"]
    if quantization["quant_method"] == "awq":
        return [columns * 8, rows]
    return [columns, rows * 32 // quantization["bits"]]


def _weights(quantization: Mapping[str, Any]) -> Mapping[str, Any]:
    weights: Mapping[str, Any] = next(iter(quantization["config_groups"].values()))["weights"]
    return weights


def _weight(stem: str, quantization: Mapping[str, Any], layout: Mapping[str, Json], values: Read) -> np.ndarray:
    outputs, inputs = _shape(stem, quantization, layout)
    parts = {name.removeprefix(f"{stem}."): values(name) for name in layout if name.startswith(f"{stem}.w")}
    parts |= {part: values(f"{stem}.{part}") for part in ("qweight", "qzeros", "scales") if f"{stem}.{part}" in layout}
    dequantize = {"awq": _awq, "gptq": _gptq, "compressed-tensors": _compressed}[quantization["quant_method"]]
    weight, i = np.empty((outputs, inputs), np.float32), np.arange(inputs)[None, :]
    for start in range(0, outputs, ROWS):
        o = np.arange(start, min(start + ROWS, outputs))[:, None]
        weight[start : start + len(o)] = dequantize(quantization, parts, o, i)
    return weight


def _awq(quantization: Mapping[str, Any], parts: Mapping[str, np.ndarray], o: np.ndarray, i: np.ndarray) -> np.ndarray:
    group = i // (i.size if quantization["group_size"] == -1 else quantization["group_size"])
    place = np.array([[0, 2, 4, 6, 1, 3, 5, 7].index(output % 8) for output in o[:, 0]])[:, None]
    value, zero = _field(parts["qweight"][i, o // 8], place, 4), _field(parts["qzeros"][group, o // 8], place, 4)
    return np.asarray((value - zero) * parts["scales"][group, o])


def _gptq(quantization: Mapping[str, Any], parts: Mapping[str, np.ndarray], o: np.ndarray, i: np.ndarray) -> np.ndarray:
    group = i // (i.size if quantization["group_size"] == -1 else quantization["group_size"])
    bits = quantization["bits"]
    less = 0 if quantization.get("checkpoint_format", quantization.get("format")) == "gptq_v2" else 1
    value = _field(parts["qweight"][i // (32 // bits), o], i % (32 // bits), bits)
    zero = _field(parts["qzeros"][group, o // (32 // bits)], o % (32 // bits), bits) + np.float32(less)
    return np.asarray((value - zero) * parts["scales"][group, o])


def _compressed(
    quantization: Mapping[str, Any], parts: Mapping[str, np.ndarray], o: np.ndarray, i: np.ndarray
) -> np.ndarray:
    weights = _weights(quantization)
    bits, per, middle = weights["num_bits"], 32 // weights["num_bits"], np.float32(1 << (weights["num_bits"] - 1))
    group = i // (weights["group_size"] if weights["strategy"] == "group" else i.size)
    scales, zeros = parts["weight_scale"], parts.get("weight_zero_point")
    scale = scales.reshape(1, 1) if scales.size == 1 else scales[o, group]
    if "weight" in parts:
        value = parts["weight"][o, i]
    else:
        value = _field(parts["weight_packed"][o, i // per], i % per, bits) - middle
    if weights.get("symmetric", True) or zeros is None:
        return np.asarray(value * scale)
    if zeros.dtype == np.int64:  # packed
        return np.asarray((value - (_field(zeros[o // per, group], o % per, bits) - middle)) * scale)
    return np.asarray((value - zeros[o, group]) * scale)


def _field(words: np.ndarray, place: np.ndarray, bits: int) -> np.ndarray:
    """Bits [place * bits, (place + 1) * bits) of words, in float32."""
    return np.asarray(((words >> (place * bits)) & ((1 << bits) - 1)).astype(np.float32))
