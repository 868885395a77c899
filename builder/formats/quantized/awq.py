"""AutoAWQ, version gemm: 4 bits, groups along the inputs, a zero point per group.

For a layer with in inputs, out outputs and groups of g:

    qweight int32 (in, out / 8)     qzeros int32 (in / g, out / 8)     scales float16 (in / g, out)

A word holds eight neighbouring outputs of one input (or group); its lowest four bits those of output 0, then outputs
2, 4, 6, 1, 3, 5, 7: WQLinear_GEMM.from_linear in casper-hansen/AutoAWQ, awq/modules/linear/gemm.py (order_map), and
awq/utils/packing_utils.py (AWQ_ORDER). weight = (value - zero) * scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llm_build.formats.quantized import (
    SCALES,
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

ROLES = ("qweight", "qzeros", "scales")
UNREAD: tuple[str, ...] = ()
SCALE = "scales"
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output at each place of a word, lowest bits first
_PER_WORD = 8


def mark(packing: Packing) -> str:
    """The tensor by which a quantized module is known."""
    return "qweight"


def describe(given: Mapping[str, Any]) -> Packing:
    """quantization_config -> Packing; UserError for another version than gemm, other bits, or no zero points."""
    version = str(given.get("version", "gemm")).lower()
    if version != "gemm":
        refuse("version", version, "gemm", "the others lay out words for one kernel")
    if given.get("bits") != 4:
        refuse("bits", given.get("bits"), "4")
    if given.get("zero_point") is not True:
        refuse("zero_point", given.get("zero_point"), "true", "gemm has no symmetric form")
    size = given.get("group_size")
    if type(size) is not int or not (size == -1 or 8 <= size <= 1024):
        refuse("group_size", size, "8 to 1024, or -1")
    return Packing("awq", "gemm", "group", 4, max(size, 0), True)


def shape(packing: Packing, stem: str, parts: Mapping[str, Any]) -> tuple[int, int]:
    """(outputs, inputs) of a module, whose tensors are checked against it."""
    inputs, words = expect_tensor(stem, parts, "qweight", ("I32",), None)["shape"]
    groups = groups_of(stem, packing, inputs)
    expect_tensor(stem, parts, "qzeros", ("I32",), (groups, words))
    expect_tensor(stem, parts, "scales", SCALES, (groups, words * _PER_WORD))
    return words * _PER_WORD, inputs


def check(packing: Packing, tensors: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Every content is good."""


def read(packing: Packing, tensors: Mapping[str, Any], arrays: Mapping[str, np.ndarray], start: int, stop: int) -> Rows:
    """Outputs [start, stop)."""
    import numpy as np

    first, last = start // _PER_WORD, -(-stop // _PER_WORD)

    def columns(role: str) -> np.ndarray:
        words = np.ascontiguousarray(arrays[role][:, first:last]).view(np.uint32)
        return unpack_words(words, 4, _ORDER)[:, start - first * _PER_WORD :][:, : stop - start].T

    values, zeros = columns("qweight"), columns("qzeros")
    return Rows(values, scales_to_float32(arrays["scales"][:, start:stop].T, tensors["scales"]["dtype"]), zeros)
