"""What verify holds gptq's rows to: near their source, never another row."""

from __future__ import annotations

import numpy as np
import pytest

from llm_build.quant import reference
from llm_build.verification import reconstruction
from tests.weights.weights_line import group_scheme


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rows_pass_and_swapped_rows_do_not(bits: int) -> None:
    scheme = group_scheme("it", bits=bits)
    source = np.random.default_rng(0).normal(0, 0.02, (64, 256)).astype(np.float32)
    words, scales = reference.quantize(source, scheme)
    weight = reference.dequantize(words, scales, 256, scheme)
    assert reconstruction.grouped(source, weight, scales, scheme, "gptq").good
    weight[3], weight[40] = weight[40].copy(), weight[3].copy()
    found = reconstruction.grouped(source, weight, scales, scheme, "gptq")
    assert not found.good
    assert found.row in (3, 40)


def test_a_row_of_zeros_is_right_only_as_zeros() -> None:
    scheme, source = group_scheme("it"), np.zeros((4, 64), np.float32)
    scales = np.ones((4, 2), np.float16)
    assert reconstruction.grouped(source, source.copy(), scales, scheme, "gptq").good
    assert not reconstruction.grouped(source, source + 0.1, scales, scheme, "gptq").good


def test_a_row_that_gptq_lengthened_is_still_that_row() -> None:
    """In 3 bits a key of SmolLM2 comes back 1.7 times as long, 1.3 times its length off and with a cosine of 0.65: what
    is added lies where its inputs are small."""
    scheme, random = group_scheme("it", bits=3), np.random.default_rng(0)
    source = random.normal(0, 0.02, (64, 256)).astype(np.float32)
    added = random.normal(0, 0.02, (64, 256)).astype(np.float32)
    weight, scales = source + 1.3 * added, np.ones((64, 8), np.float16)
    assert reconstruction.grouped(source, weight, scales, scheme, "gptq").good
    assert not reconstruction.grouped(source, weight[::-1].copy(), scales, scheme, "gptq").good
    assert not reconstruction.grouped(source, 4 * source, scales, scheme, "gptq").good
    assert not reconstruction.grouped(source, -source, scales, scheme, "gptq").good
