"""What a quantization scheme is, and the packed tensors it makes of a parameter.

A matrix (out, in) is cut along its input axis into groups of ``group_size``; each group has one scale and is stored in
whole words, ``per_word`` = 32 // bits values per uint32, lowest bits first. A group that runs past the input width, or
that does not fill its last word, is filled up with zero weights.

- ``zero_point``: stored values are 0 .. 2^bits - 1, and each group has the stored value of its zero weight beside its
  scale: weight = (stored - zero) * scale. The zero points of a row are packed as its weights are, ``per_word`` of them
  in a uint32, lowest bits first: (out, ceil(groups / per_word)) words. Layout NK only.

- layout "NK" (MLC's ``_1`` and ``_2`` schemes): words (out, words of a row), scales (out, groups).
- layout "KN" (MLC's ``_0`` schemes): the same words and scales, transposed, of linear layers and heads; an embedding
  is read row by row and stays NK (``linear_weight_layout`` and ``output_transpose`` in mlc-ai/mlc-llm,
  python/mlc_llm/quantization/group_quantization.py).
- kinds "e4m3", "e5m2": 8-bit floats (OCP 8-bit Floating Point Specification, rev. 1.0), four in a word. A
  ``group_size`` of 0 is one scale for the whole row: a float carries its own exponent, so smaller groups only cost
  bits, while one scale per tensor (mlc-llm's per_tensor_quantization.py) gives the rows of fused projections one range.
- kind "int8": two's complement bytes from -127 to 127, four in a word, one scale per row: what dp4a, dot4I8Packed and
  VPDPBUSD multiply.

``activation`` names what a layer's input is rounded to before it meets the weight ("": it stays float32), token by
token, with the scale max |x| / M: integers are summed in int32, 8-bit floats in float32, and the two scales are applied
to the sum. ``scale_per`` "tensor" is one scale for a whole matrix, which is what FP8 hardware multiplies a product
with. Scales of int8 and those of tensors are float32: they are few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from llm_build.architectures.weights import Parameter
from llm_build.core.errors import UserError

DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "uint32": 4}
_WORD_BITS = 32
FLOAT8_LARGEST = {"e4m3": 448.0, "e5m2": 57344.0}  # finite
FLOAT8_MANTISSA_BITS = {"e4m3": 3, "e5m2": 2}
FLOAT8_SMALLEST = {"e4m3": -6, "e5m2": -14}  # exponent of normal numbers; subnormals share its step
BYTE_LARGEST = {"int8": 127.0, **FLOAT8_LARGEST}  # of what inputs are rounded to, and the weights they meet
OPTIONAL: dict[str, Any] = {  # keys of a scheme that are left out where they have their default
    "rules": (),
    "activation": "",
    "activation_scale": "",
    "scale_per": "group",
    "zero_point": False,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """Parameters that another scheme packs: see quant/rules.py. ``layers`` None: wherever they are."""

    match: tuple[str, ...]
    layers: tuple[int, ...] | None
    use: Scheme

    def matches(self, name: str) -> bool:
        inside = self.layers is None or layer_of(name) in self.layers
        return inside and any(fnmatchcase(stem_of(name), pattern) for pattern in self.match)


def stem_of(name: str) -> str:
    """A parameter's name as rules match it."""
    return name.removesuffix(".weight")


def layer_of(name: str) -> int | None:
    """The layer of a parameter: the first number in its name."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


@dataclass(frozen=True, slots=True)
class Scheme:
    """One conf/quant/*.yaml. ``kind`` "none" keeps every weight, in ``dtype``; its group fields are 0 and ""."""

    name: str
    kind: str  # none | group | int8 | e4m3 | e5m2
    bits: int
    group_size: int  # weights; 0: the whole row
    layout: str  # NK | KN
    dtype: str  # of scales and of what is not quantized
    storage_dtype: str  # of packed weights
    quantize_embedding: bool
    quantize_head: bool
    rules: tuple[Rule, ...] = ()
    activation: str = ""  # int8 | e4m3 | e5m2: of the inputs of packed matrices
    activation_scale: str = ""  # dynamic: of each token
    scale_per: str = "group"  # group | tensor
    zero_point: bool = False  # of groups: a stored value per group that stands for zero

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name == "rules":
                continue
            value = getattr(self, field.name)
            if type(value).__name__ != field.type:
                raise UserError(f"quant.{field.name}: found {value!r}; allowed: a value of type {field.type}")
        for name, allowed in _allowed(self.kind, self.zero_point).items():
            if getattr(self, name) not in allowed:
                shown = ", ".join(repr(value) for value in allowed)
                raise UserError(f"quant.{name}: found {getattr(self, name)!r} in {self.name!r}; allowed: {shown}")
        if bool(self.activation) != bool(self.activation_scale):
            raise UserError(
                f"quant.activation_scale: found {self.activation_scale!r} in {self.name!r} with activation "
                f"{self.activation!r}; allowed: 'dynamic' with an activation, '' without one"
            )

    def for_parameter(self, name: str) -> Scheme:
        """The scheme of one parameter: that of the first rule that matches, else this one, without its rules."""
        if not self.rules:
            return self
        return next((rule.use for rule in self.rules if rule.matches(name)), replace(self, rules=()))

    def for_width(self, inputs: int) -> Scheme:
        """The scheme for rows of ``inputs`` weights: a group_size of 0 becomes their width."""
        return self if self.group_size or self.kind == "none" else replace(self, group_size=inputs)

    @property
    def max_int(self) -> int:
        """The largest stored magnitude of integers, and the stored value of a zero weight: 7 for 4 bits."""
        return int((1 << (self.bits - 1)) - 1)

    @property
    def zero_level(self) -> int:
        """How a zero weight is stored; with zero points, what fills the end of a word."""
        return self.max_int if self.kind == "group" and not self.zero_point else 0

    @property
    def max_level(self) -> int:
        """The largest stored value of integers with zero points."""
        return (1 << self.bits) - 1

    @property
    def scale_dtype(self) -> str:
        return "float32" if self.kind == "int8" or self.scale_per == "tensor" else self.dtype

    @property
    def max_magnitude(self) -> float:
        """The stored magnitude that the largest weight of a group gets."""
        return FLOAT8_LARGEST.get(self.kind, self.max_int)

    @property
    def per_word(self) -> int:
        return _WORD_BITS // self.bits

    @property
    def words_per_group(self) -> int:
        return -(-self.group_size // self.per_word)

    def zero_words(self, groups: int) -> int:
        """Words that hold the zero points of a row."""
        return -(-groups // self.per_word)


def _allowed(kind: str, zero_point: bool) -> dict[str, tuple[Any, ...]]:
    table: dict[str, tuple[Any, ...]] = {
        "kind": ("none", "group", *BYTE_LARGEST),
        "dtype": ("float16", "bfloat16", "float32"),
        "activation": ("",),
        "activation_scale": ("",),
        "scale_per": ("group",),
    }
    if kind != "group":
        table["zero_point"] = (False,)
    if kind in BYTE_LARGEST:
        table |= {"bits": (8,), "layout": ("NK",), "storage_dtype": ("uint32",)}
        table |= {"activation": ("", kind), "activation_scale": ("", "dynamic")}
    if kind == "int8":
        return table
    if kind in FLOAT8_LARGEST:
        return {**table, "scale_per": ("group", "tensor")}
    if kind == "group":
        layouts = ("NK",) if zero_point else ("NK", "KN")
        return {**table, "bits": tuple(range(2, 9)), "layout": layouts, "storage_dtype": ("uint32",)}
    return {**table, "bits": (0,), "group_size": (0,), "layout": ("",), "storage_dtype": ("",)}


def parse_scheme(table: Mapping[str, Any]) -> Scheme:
    """A plain dict -> Scheme, strictly; the inverse of ``dataclasses.asdict``."""
    keys = [field.name for field in fields(Scheme)]
    for key in table:
        if key not in keys:
            near = get_close_matches(key, keys, n=1) or keys
            raise UserError(f"quant.{key} is not a key of a scheme; did you mean {', '.join(near)}?")
    for key in keys:
        if key not in table and key not in OPTIONAL:
            raise UserError(f"quant.{key} is missing; a scheme has: {', '.join(keys)}")
    rules = tuple(_rule(rule) for rule in table.get("rules", ()))
    parsed = Scheme(**{**table, "rules": rules})
    _check_group_size(parsed)
    return parsed


def _check_group_size(scheme: Scheme) -> None:
    size = scheme.group_size
    if size and (scheme.kind == "int8" or scheme.activation or scheme.scale_per == "tensor"):
        raise UserError(
            f"quant.group_size: found {size} in {scheme.name!r}; allowed: 0, as one scale serves the whole "
            "sum of a row (kind int8, an activation, or scale_per tensor)"
        )
    if scheme.kind == "group" and not (8 <= size <= 1024 or (size, scheme.layout) == (0, "NK")):
        raise UserError(
            f"quant.group_size: found {size} in {scheme.name!r}; allowed: 8 to 1024, or 0 (the whole row) "
            "in the layout NK"
        )


def _rule(table: Mapping[str, Any]) -> Rule:
    layers = table["layers"]
    return Rule(tuple(table["match"]), None if layers is None else tuple(layers), parse_scheme(table["use"]))


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A stored tensor. ``role``: weight (packed), scale, zero (packed), or plain (the parameter itself, cast)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


def is_quantized(parameter: Parameter, scheme: Scheme) -> bool:
    """Whether the scheme packs this kind of parameter; norms and biases always stay."""
    scheme = scheme.for_parameter(parameter.name)
    if scheme.kind == "none":
        return False
    return {
        "linear": True,
        "embedding": scheme.quantize_embedding,
        "head": scheme.quantize_head,
        "norm": False,
        "bias": False,
        "router": False,
    }[parameter.kind]


def _packed_shape(parameter: Parameter, scheme: Scheme) -> tuple[int, int]:
    """(groups, words) of one row of the packed matrix; UserError if the scheme cannot hold its shape."""
    if len(parameter.shape) != 2:
        raise UserError(
            f"{scheme.name} packs matrices; {parameter.name} has shape {list(parameter.shape)}", "try quant=q0f16"
        )
    inputs = parameter.shape[1]
    scheme = scheme.for_width(inputs)
    if inputs < scheme.group_size:
        raise UserError(
            f"{scheme.name} has groups of {scheme.group_size} weights; {parameter.name} is only {inputs} wide",
            f"take a scheme whose group_size is at most {inputs}, or quant=q0f16",
        )
    groups = -(-inputs // scheme.group_size)
    return groups, groups * scheme.words_per_group


def stored_tensors(parameter: Parameter, scheme: Scheme) -> list[StoredTensor]:
    """The stored tensors of a parameter: q_weight and q_scale if the scheme packs it, else itself, in its dtype."""
    scheme = scheme.for_parameter(parameter.name)
    if not is_quantized(parameter, scheme):
        return [StoredTensor(parameter.name, parameter.shape, scheme.dtype, "plain")]
    return packed_tensors(parameter, scheme)


def packed_tensors(parameter: Parameter, scheme: Scheme) -> list[StoredTensor]:
    """q_weight, q_scale, and with zero points q_zero, of a parameter that the scheme packs."""
    groups, words = _packed_shape(parameter, scheme)
    outputs = parameter.shape[0]
    stem, suffix = parameter.name.rsplit(".", 1)
    assert suffix == "weight", parameter
    transposed = is_transposed(parameter, scheme)
    scales = 1 if scheme.scale_per == "tensor" else outputs
    weight_shape = (words, outputs) if transposed else (outputs, words)
    scale_shape = (groups, outputs) if transposed else (scales, groups)
    tensors = [
        StoredTensor(f"{stem}.q_weight", weight_shape, scheme.storage_dtype, "weight"),
        StoredTensor(f"{stem}.q_scale", scale_shape, scheme.scale_dtype, "scale"),
    ]
    if scheme.zero_point:
        shape = outputs, scheme.zero_words(groups)
        tensors.append(StoredTensor(f"{stem}.q_zero", shape, scheme.storage_dtype, "zero"))
    return tensors


def is_transposed(parameter: Parameter, scheme: Scheme) -> bool:
    """Whether words and scales are stored with their axes swapped."""
    return scheme.layout == "KN" and parameter.kind != "embedding"
