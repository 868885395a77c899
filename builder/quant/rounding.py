"""What a scheme makes of weights: packed and read back, without the bytes in between."""

from __future__ import annotations

import numpy as np

from llm_build.quant import pack
from llm_build.quant.layout import Scheme
from llm_build.quant.reference import dequantize
from llm_build.quant.storage import NUMPY_DTYPE


def rounded(weight_OI: np.ndarray, scheme: Scheme) -> np.ndarray:
    """float32 (out, in) -> the float32 values that the packed format, rounded to nearest, holds of it.

    Rows are packed a block at a time, as quantize does it. Their grouping is along the inputs, so a slice of rows comes
    out as it does within its whole.
    """
    outputs, inputs = weight_OI.shape
    fitted, rows = scheme.for_width(inputs), pack.block_rows(inputs)
    groups = -(-inputs // fitted.group_size)
    packer = pack.Packer(min(rows, outputs), inputs, "F32", scheme)
    raw_OI, rounded_OI = (
        np.ascontiguousarray(weight_OI, np.float32).view(np.uint32),
        np.empty_like(weight_OI, np.float32),
    )
    for start in range(0, outputs, rows):
        block = slice(start, min(start + rows, outputs))
        count = block.stop - start
        words = np.empty((count, groups * fitted.words_per_group), NUMPY_DTYPE[scheme.storage_dtype])
        scales = np.empty((count, groups), NUMPY_DTYPE[scheme.dtype])
        packer.pack(raw_OI[block], words, scales)
        rounded_OI[block] = dequantize(words, scales, inputs, scheme)
    return rounded_OI
