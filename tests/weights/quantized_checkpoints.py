"""Tiny checkpoints as AutoAWQ, GPTQModel and compressed-tensors write them, packed value by value from the formats'
descriptions, and the weights that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.weights.weights_line import ARCHITECTURE, hf_config, source_tensors, write_tensors

Tensors = dict[str, tuple[str, np.ndarray]]
SIZES = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 96}  # whole groups of 32
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def words(values: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Unsigned values -> int32 words along the last axis; ``order``: which of a word's values is at each place."""
    per = 32 // bits
    order = order or tuple(range(per))
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % per))).astype(object)
    rows = [
        [sum(int(row[at + order[place]]) << (bits * place) for place in range(per)) for at in range(0, len(row), per)]
        for row in padded
    ]
    return np.array(rows, np.uint32).view(np.int32)


def awq(stem: str, values: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> Tensors:
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    return {
        f"{stem}.qweight": ("I32", words(values.T, 4, order)),
        f"{stem}.qzeros": ("I32", words(zeros.T, 4, order)),
        f"{stem}.scales": ("F16", np.ascontiguousarray(scales.T)),
    }


def gptq(
    stem: str, values: np.ndarray, zeros: np.ndarray, scales: np.ndarray, *, bits: int = 4, less: int = 1
) -> Tensors:
    """``less``: 1 for checkpoint_format gptq, 0 for gptq_v2."""
    inputs, size = values.shape[1], values.shape[1] // zeros.shape[1]
    return {
        f"{stem}.qweight": ("I32", np.ascontiguousarray(words(values, bits).T)),
        f"{stem}.qzeros": ("I32", words(zeros.T - less, bits)),
        f"{stem}.scales": ("F16", np.ascontiguousarray(scales.T)),
        f"{stem}.g_idx": ("I32", (np.arange(inputs) // size).astype(np.int32)),
    }


def packed(stem: str, values: np.ndarray, zeros: np.ndarray | None, scales: np.ndarray, *, bits: int = 4) -> Tensors:
    """compressed-tensors pack-quantized; values and zeros unsigned. BF16 scales are given as bits."""
    dtype = "BF16" if scales.dtype == np.uint16 else "F16"
    found: Tensors = {
        f"{stem}.weight_packed": ("I32", words(values, bits)),
        f"{stem}.weight_scale": (dtype, scales),
        f"{stem}.weight_shape": ("I64", np.array(values.shape, np.int64)),
    }
    if zeros is not None:
        found[f"{stem}.weight_zero_point"] = ("I32", np.ascontiguousarray(words(zeros.T, bits).T))
    return found


def weights_config(**changes: Any) -> dict[str, Any]:
    """quantization_config of compressed-tensors."""
    form, activations = changes.pop("format"), changes.pop("input_activations", None)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, **changes}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    common = {"quant_method": "compressed-tensors", "ignore": ["lm_head"]}
    return {**common, "format": form, "config_groups": {"group_0": group}}


PER_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}


def random(rng: np.random.Generator, shape: tuple[int, int], size: int, bits: int) -> tuple[np.ndarray, ...]:
    """Values, zero points, float16 scales of a matrix. The ends of both ranges are there."""
    top, groups = (1 << bits) - 1, shape[1] // size
    values, zeros = rng.integers(0, top + 1, shape), rng.integers(1, top, (shape[0], groups))
    values[0, :2], zeros[:2, 0] = (0, top), (1, top)
    return values, zeros, (rng.uniform(0.03, 0.3, (shape[0], groups)) / (1 << bits)).astype(np.float16)


Made = tuple[Tensors, np.ndarray]  # tensors of a module, the weight in float32


def make_awq(stem: str, shape: tuple[int, int], rng: np.random.Generator) -> Made:
    values, zeros, scales = random(rng, shape, 32, 4)
    return awq(stem, values, zeros, scales), stands_for(values, zeros, scales)


def make_gptq(less: int, symmetric: bool, bits: int = 4) -> Callable[..., Made]:
    def make(stem: str, shape: tuple[int, int], rng: np.random.Generator) -> Made:
        values, zeros, scales = random(rng, shape, 32, bits)
        zeros = np.full_like(zeros, 1 << (bits - 1)) if symmetric else zeros
        return gptq(stem, values, zeros, scales, bits=bits, less=less), stands_for(values, zeros, scales)

    return make


def make_packed(symmetric: bool, size: int, bits: int = 4, brain: bool = False) -> Callable[..., Made]:
    def make(stem: str, shape: tuple[int, int], rng: np.random.Generator) -> Made:
        values, zeros, scales = random(rng, shape, size or shape[1], bits)
        held, exact = scales, scales.astype(np.float32)
        if brain:
            held = (exact.view(np.uint32) >> 16).astype(np.uint16)
            exact = (held.astype(np.uint32) << 16).view(np.float32)
        middle = np.full_like(zeros, 1 << (bits - 1))
        tensors = packed(stem, values, None if symmetric else zeros, held, bits=bits)
        return tensors, stands_for(values, middle if symmetric else zeros, exact)

    return make


def make_int8(stem: str, shape: tuple[int, int], rng: np.random.Generator) -> Made:
    values, _, scales = random(rng, shape, shape[1], 8)
    tensors: Tensors = {
        f"{stem}.weight": ("I8", (values - 128).astype(np.int8)), f"{stem}.weight_scale": ("F16", scales)
    }  # fmt: skip
    return tensors, stands_for(values, np.full_like(scales, 128), scales)


def make_float8(per_tensor: bool) -> Callable[..., Made]:
    def make(stem: str, shape: tuple[int, int], rng: np.random.Generator) -> Made:
        import torch

        codes = rng.integers(0, 256, shape).astype(np.uint8)
        codes[(codes & 0x7F) == 0x7F] = 0
        scale = rng.uniform(1e-5, 1e-4, (1,) if per_tensor else (shape[0], 1)).astype(np.float32)
        values = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
        return {f"{stem}.weight": ("F8_E4M3", codes), f"{stem}.weight_scale": ("F32", scale)}, values * scale

    return make


def stands_for(values: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(value - zero) * scale, in float32."""
    size = values.shape[1] // zeros.shape[1]
    exact = values.astype(np.float32) - np.repeat(zeros.astype(np.float32), size, axis=1)
    return exact * np.repeat(scales.astype(np.float32), size, axis=1)


FORMATS: Mapping[str, tuple[dict[str, Any], Callable[..., Made]]] = {  # quantization_config, how a module is made
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}, make_awq),
    "gptq_sym": (GPTQ, make_gptq(1, True)),
    "gptq_asym": ({**GPTQ, "sym": False}, make_gptq(1, False)),
    "gptq_v2": ({**GPTQ, "sym": False, "checkpoint_format": "gptq_v2"}, make_gptq(0, False)),
    "gptq_8": ({**GPTQ, "bits": 8}, make_gptq(1, True, 8)),
    "packed_group": (weights_config(format="pack-quantized"), make_packed(True, 32)),
    "packed_bf16": (weights_config(format="pack-quantized"), make_packed(True, 32, brain=True)),
    "packed_zeros": (weights_config(format="pack-quantized", symmetric=False), make_packed(False, 32)),
    "packed_channel": (
        weights_config(format="pack-quantized", strategy="channel", group_size=None, symmetric=False),
        make_packed(False, 0),
    ),
    "packed_8": (weights_config(format="pack-quantized", num_bits=8), make_packed(True, 32, 8)),
    "int8": (weights_config(format="int-quantized", num_bits=8, strategy="channel", group_size=None), make_int8),
    "w8a8": (
        weights_config(
            format="int-quantized", num_bits=8, strategy="channel", group_size=None, input_activations=PER_TOKEN
        ),
        make_int8,
    ),
    "float8": (
        weights_config(format="float-quantized", num_bits=8, type="float", strategy="channel", group_size=None),
        make_float8(False),
    ),
    "float8_tensor": (
        weights_config(format="float-quantized", num_bits=8, type="float", strategy="tensor", group_size=None),
        make_float8(True),
    ),
}


def tiny(name: str, seed: int = 0) -> tuple[Tensors, dict[str, np.ndarray], dict[str, Any]]:
    """Tensors of a small Llama, {matrix: what it stands for in float32}, config.json."""
    config, make = FORMATS[name]
    rng, tensors, weights = np.random.default_rng(seed), {}, {}
    for key, (dtype, array) in source_tensors().items():
        stem = key.removesuffix(".weight")
        if stem.rpartition(".")[2] in LINEAR:
            shape = tuple(96 if extent == 88 else extent for extent in array.shape)
            made, weights[key] = make(stem, shape, rng)
            tensors |= made
        else:
            tensors[key] = (dtype, array)
    return tensors, weights, {**hf_config(**SIZES), "quantization_config": config}


def write(folder: Path, name: str) -> dict[str, np.ndarray]:
    """A checkpoint folder; returns what its matrices stand for."""
    tensors, weights, config = tiny(name)
    return put(folder, tensors, config) or weights


def put(folder: Path, tensors: Tensors, config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_tensors(folder / "model.safetensors", tensors)


TINY = {**ARCHITECTURE, **SIZES}
