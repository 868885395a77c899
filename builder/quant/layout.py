"""What a quantization scheme is, and the packed tensors it makes of a parameter.

Group layout "NK" (MLC's ``_1`` schemes): a matrix (out, in) is cut along its input axis into groups of ``group_size``;
each group has one scale and is stored in whole words, ``per_word`` = 32 // bits values per uint32, lowest bits first.
A group that runs past the input width, or that does not fill its last word, is filled up with zero weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from math import prod
from typing import Any

from builder.architectures.weights import Parameter
from builder.core.errors import UserError

DTYPE_BYTES = {"float16": 2, "float32": 4, "uint32": 4}
WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class Scheme:
    """One conf/quant/*.yaml. ``kind`` "none" keeps every weight, in ``dtype``; its group fields are 0 and ""."""

    name: str
    kind: str  # none | group
    bits: int
    group_size: int  # weights
    layout: str  # NK: (output, input), groups along the input axis
    dtype: str  # of scales and of what is not quantized
    storage_dtype: str  # of packed weights
    quantize_embedding: bool
    quantize_head: bool

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value).__name__ != field.type:
                raise UserError(f"quant.{field.name}: found {value!r}; allowed: a value of type {field.type}")
        for name, allowed in _allowed(self.kind).items():
            if getattr(self, name) not in allowed:
                shown = ", ".join(repr(value) for value in allowed)
                raise UserError(f"quant.{name}: found {getattr(self, name)!r} in {self.name!r}; allowed: {shown}")
        if self.kind == "group" and not 8 <= self.group_size <= 1024:
            raise UserError(f"quant.group_size: found {self.group_size} in {self.name!r}; allowed: 8 to 1024")

    @property
    def max_int(self) -> int:
        """The largest stored magnitude, and the stored value of a zero weight: 7 for 4 bits."""
        return int((1 << (self.bits - 1)) - 1)

    @property
    def per_word(self) -> int:
        return WORD_BITS // self.bits

    @property
    def words_per_group(self) -> int:
        return -(-self.group_size // self.per_word)


def _allowed(kind: str) -> dict[str, tuple[Any, ...]]:
    table: dict[str, tuple[Any, ...]] = {"kind": ("none", "group"), "dtype": ("float16", "float32")}
    if kind == "group":
        return {**table, "bits": tuple(range(2, 9)), "layout": ("NK",), "storage_dtype": ("uint32",)}
    return {**table, "bits": (0,), "group_size": (0,), "layout": ("",), "storage_dtype": ("",)}


def scheme(table: Mapping[str, Any]) -> Scheme:
    """A plain dict -> Scheme, strictly; the inverse of ``dataclasses.asdict``."""
    known = [field.name for field in fields(Scheme)]
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1) or known
            raise UserError(f"quant.{key} is not a key of a scheme; did you mean {', '.join(near)}?")
    for key in known:
        if key not in table:
            raise UserError(f"quant.{key} is missing; a scheme has: {', '.join(known)}")
    return Scheme(**table)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stored tensor. ``role``: weight (packed), scale, or plain (the parameter itself, cast)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: str

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


def is_quantized(parameter: Parameter, scheme: Scheme) -> bool:
    """Whether the scheme packs this kind of parameter; norms and biases always stay."""
    if scheme.kind == "none":
        return False
    return {
        "linear": True,
        "embedding": scheme.quantize_embedding,
        "head": scheme.quantize_head,
        "norm": False,
        "bias": False,
    }[parameter.kind]


def grid(parameter: Parameter, scheme: Scheme) -> tuple[int, int]:
    """(groups, words) of one row of the packed matrix; UserError if the scheme cannot hold its shape."""
    if len(parameter.shape) != 2:
        raise UserError(
            f"{scheme.name} packs matrices; {parameter.name} has shape {list(parameter.shape)}", "try quant=q0f16"
        )
    inputs = parameter.shape[1]
    if inputs < scheme.group_size:
        raise UserError(
            f"{scheme.name} has groups of {scheme.group_size} weights; {parameter.name} is only {inputs} wide",
            f"take a scheme whose group_size is at most {inputs}, or quant=q0f16",
        )
    groups = -(-inputs // scheme.group_size)
    return groups, groups * scheme.words_per_group


def packed(parameter: Parameter, scheme: Scheme) -> list[Piece]:
    """The stored tensors of a parameter: q_weight and q_scale if the scheme packs it, else itself, in its dtype."""
    if not is_quantized(parameter, scheme):
        return [Piece(parameter.name, parameter.shape, scheme.dtype, "plain")]
    groups, words = grid(parameter, scheme)
    outputs = parameter.shape[0]
    stem, suffix = parameter.name.rsplit(".", 1)
    assert suffix == "weight", parameter
    return [
        Piece(f"{stem}.q_weight", (outputs, words), scheme.storage_dtype, "weight"),
        Piece(f"{stem}.q_scale", (outputs, groups), scheme.dtype, "scale"),
    ]
