"""GPTQ as AutoGPTQ and GPTQModel write it, 4 or 8 bits.

For a layer with in inputs, out outputs, groups of g and n = 32 / bits values in a word, lowest bits first:

    qweight int32 (in / n, out)   qzeros int32 (in / g, out / n)   scales float16 (in / g, out)   g_idx int32 (in,)

A word of qweight holds n neighbouring inputs of one output, one of qzeros n neighbouring outputs of one group: pack()
in AutoGPTQ/AutoGPTQ, auto_gptq/nn_modules/qlinear/qlinear_cuda.py. weight = (value - zero) * scale.

- checkpoint_format "gptq" stores zero - 1 in qzeros, "gptq_v2" the zero itself (convert_gptq_v1_to_v2_format_module in
  ModelCloud/GPTQModel, gptqmodel/utils/model.py). A stored largest value in "gptq" is a zero point of -1 + 1 = 0 to
  some runtimes and of 2^bits to others, and may have borrowed from its neighbours in the word, so it is refused.
- sym: every zero point is the middle, 2^(bits - 1).
- desc_act: g_idx says which group each input is in. Inputs in another order than that of their groups have no groups
  of neighbours, which is what our schemes hold: refused. A g_idx of neighbours is read, whatever desc_act says.
"""

from __future__ import annotations

from collections.abc import Mapping
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

ROLES = ("qweight", "qzeros", "scales", "g_idx")
UNREAD: tuple[str, ...] = ()
SCALE = "scales"
_FORMATS = ("gptq", "gptq_v2")


def mark(packing: Packing) -> str:
    """The tensor by which a quantized module is known."""
    return "qweight"


def describe(given: Mapping[str, Any]) -> Packing:
    """quantization_config -> Packing; UserError for other bits or formats, or modules with settings of their own."""
    bits, size = given.get("bits"), given.get("group_size")
    if bits not in (4, 8):
        refuse("bits", bits, "4, 8", "others lay values across words")
    if type(size) is not int or not (size == -1 or 8 <= size <= 1024):
        refuse("group_size", size, "8 to 1024, or -1")
    form = given.get("checkpoint_format") or given.get("format") or "gptq"
    if form not in _FORMATS:
        refuse("checkpoint_format", form, ", ".join(_FORMATS))
    if not isinstance(given.get("dynamic") or {}, Mapping):
        refuse("dynamic", given["dynamic"], "a mapping of patterns")
    kept = [name for name in given.get("dynamic") or {} if not str(name).startswith("-")]
    if kept:
        refuse("dynamic", kept[0], "patterns that begin with '-:'", "one scheme for all quantized modules")
    return Packing("gptq", form, "group", bits, max(size, 0), given.get("sym") is not True)


def shape(packing: Packing, stem: str, parts: Mapping[str, Any]) -> tuple[int, int]:
    """(outputs, inputs) of a module, whose tensors are checked against it."""
    per_word = 32 // packing.bits
    words, outputs = expect_tensor(stem, parts, "qweight", ("I32",), None)["shape"]
    inputs = words * per_word
    groups = groups_of(stem, packing, inputs)
    expect_tensor(stem, parts, "scales", SCALES, (groups, outputs))
    expect_tensor(stem, parts, "qzeros", ("I32",), (groups, -(-outputs // per_word)))
    if "g_idx" in parts:
        expect_tensor(stem, parts, "g_idx", ("I32",), (inputs,))
    return outputs, inputs


def check(packing: Packing, tensors: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """The order of the inputs, and the zero points."""
    import numpy as np

    inputs, name = arrays["qweight"].shape[0] * (32 // packing.bits), tensors["qweight"]["tensor"]
    if "g_idx" in arrays and (arrays["g_idx"] != np.arange(inputs) // (packing.group_size or inputs)).any():
        raise UserError(
            f"{tensors['g_idx']['tensor']}: inputs are in the order of their activations (desc_act), so that a group "
            "is not made of neighbours; no scheme holds that without rounding again",
            "take a checkpoint with desc_act false, or " + USE_THE_SOURCE.removeprefix("take "),
        )
    raw = unpack_words(np.asarray(arrays["qzeros"]).view(np.uint32), packing.bits)[:, : arrays["qweight"].shape[1]]
    off, middle = int(packing.format == "gptq"), 1 << (packing.bits - 1)
    other = raw[raw != middle - off]
    if not packing.zero_point and other.size:
        raise UserError(
            f"{name}: sym is true, but qzeros has a zero point of {int(other[0]) + off}; expected {middle} throughout",
            "is checkpoint_format (gptq, gptq_v2) of quantization_config right?",
        )
    if packing.zero_point and off and (raw == (1 << packing.bits) - 1).any():
        raise UserError(
            f"{name}: qzeros stores {(1 << packing.bits) - 1}, which runtimes of checkpoint_format gptq read as a zero "
            f"point of 0 or of {1 << packing.bits}",
            "convert the checkpoint to gptq_v2 with GPTQModel, or " + USE_THE_SOURCE,
        )


def read(packing: Packing, tensors: Mapping[str, Any], arrays: Mapping[str, np.ndarray], start: int, stop: int) -> Rows:
    """Outputs [start, stop)."""
    import numpy as np

    per_word = 32 // packing.bits
    columns = np.ascontiguousarray(arrays["qweight"][:, start:stop].T).view(np.uint32)
    scales = scales_to_float32(arrays["scales"][:, start:stop].T, tensors["scales"]["dtype"])
    if not packing.zero_point:
        return Rows(unpack_words(columns, packing.bits), scales, None)
    words = slice(start // per_word, -(-stop // per_word))
    raw = unpack_words(np.ascontiguousarray(arrays["qzeros"][:, words]).view(np.uint32), packing.bits)
    zeros = raw[:, start % per_word : start % per_word + stop - start].T + np.uint8(packing.format == "gptq")
    return Rows(unpack_words(columns, packing.bits), scales, zeros)
