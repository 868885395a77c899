"""compressed-tensors: integers packed or a byte each, and 8-bit floats.

For a layer with in inputs, out outputs, and G scales in a row (in / group_size; 1 for strategy channel):

- pack-quantized: weight_packed int32 (out, in * bits / 32), lowest bits first, holds q + 2^(bits - 1) for signed q;
  weight_scale (out, G); weight_zero_point int32 (out * bits / 32, G), packed alike along the outputs, or int8 (out, G),
  unpacked; weight_shape (2,). (pack_to_int32 and PackedQuantizationCompressor in vllm-project/compressed-tensors,
  compressors/pack_quantized/)
- int-quantized: weight int8 (out, in), weight_scale (out, 1), weight_zero_point int8 (out, 1).
- float-quantized: weight F8_E4M3 (out, in), weight_scale (out, 1), or one for the tensor.
  (compressors/naive_quantized/)

weight = (q - zero) * scale. What inputs are rounded to at run time is not part of the weights: int8 per token is what a
scheme of kind int8 does; other rounding of inputs is left out, which is closer to the model before it was quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from llm_build.core.errors import UserError
from llm_build.formats.quantized import (
    SCALES,
    USE_THE_SOURCE,
    Packing,
    Rows,
    expect_tensor,
    groups_of,
    refuse,
    scales_to_float32,
    unpack_words,
)

if TYPE_CHECKING:
    import numpy as np

UNREAD = ("input_scale", "input_zero_point", "weight_shape")
ROLES = ("weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_g_idx", *UNREAD)
SCALE = "weight_scale"
_TYPES = {"pack-quantized": "int", "int-quantized": "int", "float-quantized": "float"}
_TURNED = "inputs in another order have no groups of neighbours"
_NAN = 0x7F  # of e4m3, but for the sign


def mark(packing: Packing) -> str:
    """The tensor by which a quantized module is known."""
    return "weight_packed" if packing.format == "pack-quantized" else "weight_scale"


def describe(given: Mapping[str, Any]) -> Packing:
    """quantization_config -> Packing; UserError for formats, strategies and mixtures that no scheme holds."""
    if not isinstance(given.get("config_groups") or {}, Mapping):
        refuse("config_groups", given["config_groups"], "a mapping of groups")
    groups = list((given.get("config_groups") or {}).values())
    if not groups or any(group.get("weights") != groups[0].get("weights") for group in groups):
        refuse("config_groups", [group.get("weights") for group in groups][:2], "the same weights in every group")
    group, weights = groups[0], groups[0].get("weights") or {}
    form = group.get("format") or given.get("format")
    if not isinstance(form, str) or form not in _TYPES or weights.get("type", "int") != _TYPES[form]:
        refuse("format", form, ", ".join(_TYPES))
    if weights.get("actorder") not in (None, False, "weight", "static"):
        refuse("actorder", weights.get("actorder"), "weight, null", _TURNED)
    bits = weights.get("num_bits", 8)
    if bits not in ((4, 8) if form == "pack-quantized" else (8,)):
        refuse("num_bits", bits, "4, 8 packed; 8 otherwise")
    kind, symmetric = "group" if _TYPES[form] == "int" else "e4m3", weights.get("symmetric", True)
    if kind == "e4m3" and not symmetric:
        refuse("symmetric", symmetric, "true for floats")
    size = group_size(weights, ("channel", "tensor") if kind == "e4m3" else ("group", "channel"))
    return Packing("compressed-tensors", form, kind, bits, size, not symmetric, activation(group, form))


def group_size(weights: Mapping[str, Any], strategies: tuple[str, ...]) -> int:
    """Of the weights' strategy; 0: the whole row."""
    strategy, size = weights.get("strategy"), weights.get("group_size") or 0
    if strategy not in strategies:
        refuse("strategy", strategy, ", ".join(strategies))
    if strategy != "group":
        return 0
    if type(size) is not int or not 8 <= size <= 1024:
        refuse("group_size", size, "8 to 1024")
    return size


def activation(group: Mapping[str, Any], form: str) -> str:
    """int8 where inputs are rounded to it token by token, around 0, as a scheme of ours does."""
    activations, weights = group.get("input_activations") or {}, group["weights"]
    int8_per_token = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token", "symmetric": True}
    same = form == "int-quantized" and weights.get("symmetric", True)
    return "int8" if same and all(activations.get(key) == value for key, value in int8_per_token.items()) else ""


def shape(packing: Packing, stem: str, parts: Mapping[str, Any]) -> tuple[int, int]:
    """(outputs, inputs) of a module, whose tensors are checked against it."""
    if packing.format == "pack-quantized":
        per_word = 32 // packing.bits
        outputs, words = expect_tensor(stem, parts, "weight_packed", ("I32",), None)["shape"]
        inputs = words * per_word
        if packing.group_size:
            inputs = expect_tensor(stem, parts, "weight_scale", SCALES, None)["shape"][1] * packing.group_size
            expect_tensor(stem, parts, "weight_packed", ("I32",), (outputs, -(-inputs // per_word)))
        expect_tensor(stem, parts, "weight_shape", ("I64", "I32"), (2,))
    else:
        dtype = "I8" if packing.kind == "group" else "F8_E4M3"
        outputs, inputs = expect_tensor(stem, parts, "weight", (dtype,), None)["shape"]
    groups = groups_of(stem, packing, inputs)
    one = packing.kind == "e4m3" and prod(parts["weight_scale"]["shape"]) == 1
    expect_tensor(stem, parts, "weight_scale", SCALES, parts["weight_scale"]["shape"] if one else (outputs, groups))
    if "weight_g_idx" in parts:
        raise UserError(f"{stem}.weight_g_idx: {_TURNED}", f"quantize with actorder: weight, or {USE_THE_SOURCE}")
    if packing.zero_point:
        words = -(-outputs * packing.bits // 32)
        packed = packing.format == "pack-quantized" and parts.get("weight_zero_point", {}).get("dtype") != "I8"
        dtype, extent = ("I32", words) if packed else ("I8", outputs)
        expect_tensor(stem, parts, "weight_zero_point", (dtype,), (extent, groups))
    return outputs, inputs


def check(packing: Packing, tensors: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """No code of a float is NaN, and symmetric integers have no zero points."""
    import numpy as np

    if packing.kind == "e4m3" and ((arrays["weight"] & np.uint8(_NAN)) == _NAN).any():
        raise UserError(f"{tensors['weight']['tensor']} holds NaN", "fetch the checkpoint again")
    if not packing.zero_point and "weight_zero_point" in arrays and np.any(arrays["weight_zero_point"]):
        name = tensors["weight_zero_point"]["tensor"]
        raise UserError(
            f"{name} is not 0, but the weights are said to be symmetric", "does config.json belong to them?"
        )


def read(packing: Packing, tensors: Mapping[str, Any], arrays: Mapping[str, np.ndarray], start: int, stop: int) -> Rows:
    """Outputs [start, stop)."""
    import numpy as np

    middle = 1 << (packing.bits - 1)
    stored = scales_to_float32(arrays["weight_scale"], tensors["weight_scale"]["dtype"])
    scales = np.broadcast_to(stored.reshape(1, 1), (stop - start, 1)) if stored.size == 1 else stored[start:stop]
    if packing.kind == "e4m3":
        return Rows(np.asarray(arrays["weight"][start:stop]), scales, None)
    if packing.format == "pack-quantized":
        words = np.ascontiguousarray(arrays["weight_packed"][start:stop]).view(np.uint32)
        values = unpack_words(words, packing.bits)
    else:
        values = (arrays["weight"][start:stop].astype(np.int16) + middle).astype(np.uint8)
    if not packing.zero_point:
        return Rows(values, scales, None)
    if tensors["weight_zero_point"]["dtype"] == "I8":
        zeros = (arrays["weight_zero_point"][start:stop].astype(np.int16) + middle).astype(np.uint8)
        return Rows(values, scales, zeros)
    turned = np.ascontiguousarray(arrays["weight_zero_point"].T).view(np.uint32)
    return Rows(values, scales, unpack_words(turned, packing.bits)[:, start:stop].T)
