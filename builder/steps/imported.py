"""Parameters that the checkpoint holds quantized: its integers, scales and zero points, in our words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from llm_build.architectures.weights import Entry, Slice
from llm_build.core.errors import UserError
from llm_build.core.step_io import InputFiles
from llm_build.formats import quantized
from llm_build.quant import asymmetric
from llm_build.quant.layout import Scheme
from llm_build.quant.storage import narrow, widen
from llm_build.steps.ports import one

ROWS = 256  # outputs at a time: words that lie beside each other in the source hold neighbouring outputs
_HELD = {"F16": np.float16, "BF16": np.uint16, "F32": np.float32, "I32": np.int32, "I8": np.int8, "F8_E4M3": np.uint8}

Store = Callable[[str, int, np.ndarray], None]  # (role, first row, rows)
Done = Callable[[int, str], None]  # (weights, their dtype in the weight map)


def write(entry: Entry, scheme: Scheme, inputs: InputFiles, store: Store, done: Done) -> None:
    """Give ``store`` the stored tensors of a parameter.

    Args:
        entry: its sources are all ``stored``.
        scheme: that of the parameter, from the same description.
        done: called after each run of rows.

    Raises:
        UserError: the content of a tensor is not what config.json says.
    """
    row, width = 0, entry.parameter.shape[1]
    for source in entry.sources:
        assert source.stored, entry.name
        arrays = {role: _mapped(part, inputs) for role, part in source.stored["tensors"].items()}
        quantized.check(source.stored, arrays)
        for start in range(source.start, source.stop, ROWS):
            stop = min(start + ROWS, source.stop)
            read_rows = quantized.read(source.stored, arrays, start, stop)
            for role, rows in _tensors(read_rows, width, scheme, source):
                store(role, row, rows)
            row += stop - start
            done((stop - start) * width, source.dtype)


def _mapped(part: Mapping[str, Any], inputs: InputFiles) -> np.ndarray:
    file = one(inputs[part["tensor"]])
    return np.memmap(file.path, _HELD[part["dtype"]], "r", file.offset, tuple(part["shape"]))


def _tensors(source_rows: quantized.Rows, width: int, scheme: Scheme, source: Slice) -> list[tuple[str, np.ndarray]]:
    """(role, rows) of a run of rows, as the scheme holds them.

    A symmetric value v stands for (v - 2^(bits - 1)) * s, and ours for (v - (2^(bits - 1) - 1)) * s: with the values
    turned around, 2^bits - 1 - v, and the sign of the scale, they are the same.
    """
    fitted, values, scales = scheme.for_width(width), source_rows.values[:, :width], source_rows.scales
    if scheme.kind == "int8":
        values = values ^ np.uint8(0x80)  # two's complement
    elif scheme.kind == "group" and not scheme.zero_point:
        values, scales = np.uint8(fitted.max_level) - values, -scales
    stored = narrow(scales, scheme.scale_dtype)
    if not np.isfinite(scales).all() or (widen(stored, scheme.scale_dtype) != scales).any():
        raise UserError(f"{source.tensor}: a scale is NaN or infinite", "fetch the checkpoint again")
    rows, groups = scales.shape
    slots = fitted.words_per_group * fitted.per_word
    levels = np.full((rows, groups, slots), scheme.zero_level, np.uint8)
    levels[:, :, : fitted.group_size] = values.reshape(rows, groups, fitted.group_size)
    tensors = [("weight", asymmetric.words_of(levels, fitted).reshape(rows, -1)), ("scale", stored)]
    if source_rows.zeros is not None:
        tensors.append(("zero", asymmetric.pack_zeros(source_rows.zeros, fitted)))
    return tensors
