"""Zero points: the fast packing equals the reference bit for bit, the reference its formula, and verify sees faults."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_build.architectures.weights import Parameter
from llm_build.core.errors import UserError
from llm_build.quant import asymmetric, reference
from llm_build.quant.layout import Scheme, stored_tensors
from llm_build.quant.storage import NUMPY_DTYPE, narrow, widen
from llm_build.verification import reconstruction
from tests.weights.test_pack import as_held
from tests.weights.weights_line import group_scheme

SCHEMES = [
    group_scheme("q4f16_zp32", zero_point=True),
    group_scheme("q4f16_zp128", group_size=128, zero_point=True),
    group_scheme("q3bf16_zp40", bits=3, group_size=40, dtype="bfloat16", zero_point=True),
    group_scheme("q8f32_zp", bits=8, group_size=0, dtype="float32", zero_point=True),
]


def fast(weight: np.ndarray, source: str, scheme: Scheme) -> list[np.ndarray]:
    raw, _ = as_held(weight, source)
    packer = asymmetric.Packer(len(raw), raw.shape[1], source, scheme)
    fitted = scheme.for_width(raw.shape[1])
    shapes = packer.groups * fitted.words_per_group, packer.groups, scheme.zero_words(packer.groups)
    dtypes = np.dtype(np.uint32), NUMPY_DTYPE[scheme.dtype], np.dtype(np.uint32)
    found = [np.ones((len(raw), width), dtype) for width, dtype in zip(shapes, dtypes, strict=True)]
    packer.pack(raw, *found)
    return found


def check_equal(weight: np.ndarray, source: str, scheme: Scheme) -> None:
    expected = reference.quantize(as_held(weight, source)[1], scheme)
    for found, wanted in zip(fast(weight, source, scheme), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("source", ["F16", "BF16", "F32", "F64"])
def test_random_and_hard_weights(scheme: Scheme, source: str) -> None:
    weight = np.random.default_rng(0).standard_normal((12, 150)) + 0.3
    weight[1], weight[2], weight[3] = 0, np.abs(weight[2]), -np.abs(weight[3])
    weight[4], weight[5], weight[6] = weight[4] * 1e-7, weight[5] * 6e4, np.round(weight[6] * 4) / 4
    weight[7, :3] = np.nan, np.inf, -np.inf
    weight[8, :40], weight[9] = np.nan, -0.0
    check_equal(weight, source, scheme)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=80), st.sampled_from(SCHEMES))
def test_any_bits(bits: list[int], scheme: Scheme) -> None:
    check_equal(np.array([bits], np.uint32).view(np.float32), "F32", scheme)


def test_the_rule_in_numbers() -> None:
    weight = np.zeros((1, 32), np.float32)
    weight[0, :4] = [-1, 2, 0, 0.1]
    words, scales, zeros = reference.quantize(weight, SCHEMES[0])
    assert scales[0, 0] == np.float16(0.2)
    assert zeros.tolist() == [[5]]
    assert words[0, 0] & 0xFFFF == 0x65F0  # -1: 0, 2: 15, 0: 5, 0.1: 6, as float16(0.2) is a little less than 0.2
    back = reference.dequantize(words, scales, 32, SCHEMES[0], zeros)
    np.testing.assert_array_equal(back[0, :3], np.array([-5, 10, 0], np.float32) * np.float32(np.float16(0.2)))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_verify_holds_every_weight_and_sees_a_wrong_zero_point(scheme: Scheme) -> None:
    weight = np.random.default_rng(1).standard_normal((9, 150)).astype(np.float32) + np.float32(0.2)
    weight[3] *= np.float32(1e-6)  # subnormal scales
    words, scales, zeros = reference.quantize(weight, scheme)
    found = reconstruction.grouped(weight, reference.dequantize(words, scales, 150, scheme, zeros), scales, scheme)
    assert found.good, found
    zeros[4, 0] ^= 1
    found = reconstruction.grouped(weight, reference.dequantize(words, scales, 150, scheme, zeros), scales, scheme)
    assert not found.good
    assert found.row == 4
    zeros[4, 0] ^= 1
    scales[2, 0] = narrow(widen(scales[2:3, 0], scheme.dtype) * np.float32(1.05), scheme.dtype)[0]
    found = reconstruction.grouped(weight, reference.dequantize(words, scales, 150, scheme, zeros), scales, scheme)
    assert not found.good
    assert found.row == 2


def test_pieces_and_their_size() -> None:
    matrix = Parameter("x.weight", (10, 1280), "linear")
    pieces = stored_tensors(matrix, SCHEMES[1])
    assert [(piece.name, piece.shape, piece.role) for piece in pieces] == [
        ("x.q_weight", (10, 160), "weight"), ("x.q_scale", (10, 10), "scale"), ("x.q_zero", (10, 2), "zero")
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"quant.layout: found 'KN'.*allowed: 'NK'"):
        group_scheme("x", layout="KN", zero_point=True)
    with pytest.raises(UserError, match=r"quant.zero_point: found True"):
        group_scheme("x", kind="e4m3", bits=8, zero_point=True)
