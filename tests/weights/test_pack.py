"""The fast packing equals the reference, bit for bit, on everything that a rule is needed for."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_build.quant import float8, pack, reference, storage
from llm_build.quant.layout import FLOAT8_MANTISSA_BITS, FLOAT8_SMALLEST, Scheme
from llm_build.quant.storage import NUMPY_DTYPE
from tests.weights.weights_line import group_scheme

Q4F16 = group_scheme("q4f16_1")
Q4F32 = group_scheme("q4f32_1", dtype="float32")
SCHEMES = [
    Q4F16,
    Q4F32,
    group_scheme("q3f16_1", bits=3, group_size=40),
    group_scheme("q8f16_1", bits=8),
    group_scheme("q8g40", bits=8, group_size=40, dtype="float32"),
    group_scheme("q2g16", bits=2, group_size=16),
    group_scheme("q5g64", bits=5, group_size=64),
    group_scheme("q6g8", bits=6, group_size=8),
    group_scheme("q7g33", bits=7, group_size=33),
    group_scheme("q4bf16_1", dtype="bfloat16"),
    group_scheme("e4m3_f16", kind="e4m3", bits=8, group_size=0),
    group_scheme("e5m2_f16", kind="e5m2", bits=8, group_size=0),
    group_scheme("w8a8", kind="int8", bits=8, group_size=0, activation="int8", activation_scale="dynamic"),
    group_scheme("e4m3_e4m3_f16", kind="e4m3", bits=8, group_size=0, scale_per="tensor"),
    group_scheme("e5m2_e5m2_f16", kind="e5m2", bits=8, group_size=0, scale_per="tensor"),
    group_scheme("e4m3g32", kind="e4m3", bits=8, group_size=32, dtype="bfloat16"),
]
NAMES = [scheme.name for scheme in SCHEMES]


def as_held(weight: np.ndarray, source: str) -> tuple[np.ndarray, np.ndarray]:
    """(as the checkpoint holds it, the float32 values that this is)."""
    with np.errstate(over="ignore", under="ignore"):
        if source == "F16":
            half = weight.astype(np.float16)
            return half.view(np.uint16), half.astype(np.float32)
        if source == "BF16":
            bits = (weight.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            return bits, (bits.astype(np.uint32) << 16).view(np.float32)
        if source == "F32":
            return weight.astype(np.float32).view(np.uint32), weight.astype(np.float32)
        return weight.astype(np.float64), weight.astype(np.float64).astype(np.float32)


def packed(weight: np.ndarray, source: str, scheme: Scheme) -> tuple[np.ndarray, np.ndarray, pack.Counts]:
    raw, _ = as_held(weight, source)
    rows, inputs = raw.shape
    packer = pack.Packer(rows, inputs, source, scheme)
    words = np.full((rows, packer.groups * packer.scheme.words_per_group), 0xDEADBEEF, np.uint32)
    scales = np.full((rows, packer.groups), 9, NUMPY_DTYPE[scheme.scale_dtype])
    if scheme.scale_per == "tensor":
        largest = packer.largest(raw).reshape(1)
        packer.tensor_scale, _ = storage.scales(largest / np.float32(scheme.max_magnitude), scheme.scale_dtype)
    counts = packer.pack(raw, words, scales)
    return words, scales[:1] if scheme.scale_per == "tensor" else scales, counts


def assert_equal(weight: np.ndarray, source: str, scheme: Scheme) -> None:
    words, scales, _ = packed(weight, source, scheme)
    _, values = as_held(weight, source)
    expected_words, expected_scales = reference.quantize(values, scheme)
    bits = np.uint32 if scheme.scale_dtype == "float32" else np.uint16
    np.testing.assert_array_equal(scales.view(bits), expected_scales.view(bits))
    np.testing.assert_array_equal(words, expected_words)


@pytest.mark.parametrize("scheme", SCHEMES, ids=NAMES)
@pytest.mark.parametrize("source", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("inputs", [88, 160])
def test_random_weights(scheme: Scheme, source: str, inputs: int) -> None:
    rng = np.random.default_rng(inputs)
    assert_equal(rng.standard_normal((6, inputs)) * 0.02, source, scheme)
    assert_equal(rng.standard_normal((6, inputs)) * 10.0 ** rng.integers(-9, 5, (6, inputs)), source, scheme)


HARD: dict[str, list[float]] = {
    "ties": [7.0, 0.5, -0.5, 1.5, -1.5, 2.5, 3.5, -6.5, 6.5, -7.0],  # scale 1 in 4 bits
    "zeros": [0.0, -0.0, 1.0],
    "all zero": [0.0, -0.0],
    "half subnormals": [2.0**-24, -(2.0**-24), 3 * 2.0**-24, 0.0],
    "scale is a subnormal half": [1e-6, -1e-6, 5e-7, 3e-7],
    "scale rounds to zero": [2.0**-23, -(2.0**-23), 2.0**-24],
    "scale rounds to the first subnormal": [7 * 2.0**-25 * 1.01, -1e-7],
    "single subnormals": [1e-45, -4e-45, 1e-44, 1e-40],
    "huge halves": [65504.0, -65504.0, 1.0, -1e-3],
    "past the half scale": [6e5, -6e5, 458751.0, 458752.0, 1.0],
    "huge singles": [3.4e38, -3.4e38, 1.0, 1e30],
    "one large": [1.0, *[1e-4] * 12],
    "scale is just normal": [2.0**-14 * 7, -(2.0**-15), 2.0**-16],
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("source", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("scheme", [*SCHEMES[:4], *SCHEMES[9:]], ids=[*NAMES[:4], *NAMES[9:]])
def test_hard_weights(case: str, source: str, scheme: Scheme) -> None:
    values = HARD[case]
    limit = 65504.0 if source == "F16" else 3.4e38
    weight = np.clip(np.array((values * 200)[:160], np.float64).reshape(2, 80), -limit, limit)
    assert_equal(weight, source, scheme)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=80), st.sampled_from(SCHEMES))
def test_any_half_bits(bits: list[int], scheme: Scheme) -> None:
    """Every float16 pattern, NaN and infinity among them."""
    raw = np.array((bits * 80)[:80], np.uint16).reshape(1, 80)
    assert_equal(raw.view(np.float16), "F16", scheme)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=80), st.sampled_from(SCHEMES))
def test_any_single_bits(bits: list[int], scheme: Scheme) -> None:
    raw = np.array((bits * 80)[:80], np.uint32).reshape(1, 80)
    assert_equal(raw.view(np.float32), "F32", scheme)


def stored(words: np.ndarray, scheme: Scheme = Q4F16) -> list[int]:
    return [int(word) >> (scheme.bits * place) & (2**scheme.bits - 1) for word in words for place in range(8)]


def test_rules_in_numbers() -> None:
    """The docstring of ``reference``, spelled out, so that a change of both implementations is noticed."""
    weight = np.zeros((1, 32), np.float64)
    weight[0, :8] = [7.0, 0.5, -0.5, 1.5, -7.0, -0.0, 0.0, 2.5]
    words, scales, _ = packed(weight, "F16", Q4F16)
    assert scales.tolist() == [[1.0]]
    assert stored(words[0])[:9] == [14, 8, 6, 8, 0, 7, 7, 10, 7]
    words, scales, counts = packed(np.full((1, 32), 1e6), "F32", Q4F16)
    assert (scales[0, 0], stored(words[0])[0], counts.saturated) == (65504.0, 14, 1)
    words, scales, _ = packed(np.full((1, 32), 2.0**-24), "F16", Q4F16)  # 2^-24 / 7 is under half of 2^-24
    assert (scales[0, 0], set(stored(words[0]))) == (0.0, {7})
    words, scales, counts = packed(np.array([[np.nan, np.inf, -np.inf, *[1.0] * 29]]), "F32", Q4F16)
    assert stored(words[0])[:4] == [7, 14, 0, 14]
    assert counts.nonfinite == 3


def test_a_partial_group_is_filled_with_zero_weights() -> None:
    words, scales, _ = packed(np.ones((1, 33)), "F32", Q4F16)
    assert words.shape == (1, 8)
    assert scales.shape == (1, 2)
    assert stored(words[0])[32:] == [14] + [7] * 31


@pytest.mark.parametrize("scheme", SCHEMES, ids=NAMES)
def test_dequantized_is_within_half_a_step(scheme: Scheme) -> None:
    weight = (np.random.default_rng(3).standard_normal((4, 130)) * 0.1).astype(np.float32)
    words, scales, _ = packed(weight, "F32", scheme)
    back = reference.dequantize(words, scales, 130, scheme)
    scheme = scheme.for_width(130)
    steps = np.repeat(storage.widen(scales, scheme.scale_dtype), scheme.group_size, axis=1)[:, :130]
    if scheme.kind in FLOAT8_SMALLEST:
        mantissa, smallest = FLOAT8_MANTISSA_BITS[scheme.kind], FLOAT8_SMALLEST[scheme.kind]
        binade = np.maximum(np.floor(np.log2(np.abs(weight / steps))), smallest)
        steps = steps * 2.0 ** (binade - mantissa)
    assert np.all(np.abs(back - weight) <= steps * (0.5 + 2.0**-8))
    assert not np.array_equal(back, weight)


def test_scales_alone_equal_the_packed_ones() -> None:
    raw, _ = as_held(np.random.default_rng(4).standard_normal((5, 96)), "F16")
    packer = pack.Packer(5, 96, "F16", Q4F16)
    words, both, alone = np.empty((5, 12), np.uint32), np.empty((5, 3), np.float16), np.empty((5, 3), np.float16)
    packer.pack(raw, words, both)
    packer.scales(raw, alone)
    np.testing.assert_array_equal(both, alone)


def test_scratch_memory_is_clean_between_blocks() -> None:
    rng = np.random.default_rng(5)
    packer = pack.Packer(4, 50, "F16", Q4F16)
    for rows, factor in ((4, 1e4), (2, 1e-3), (3, 1.0)):
        raw, values = as_held(rng.standard_normal((rows, 50)) * factor, "F16")
        words, scales = np.empty((rows, 8), np.uint32), np.empty((rows, 2), np.float16)
        packer.pack(raw, words, scales)
        expected = reference.quantize(values, Q4F16)
        np.testing.assert_array_equal(words, expected[0])
        np.testing.assert_array_equal(scales, expected[1])


def test_every_half_widens_exactly() -> None:
    raw = np.arange(65536, dtype=np.uint16)
    expected = raw.view(np.float16).astype(np.float32)
    finite, out = np.isfinite(expected), np.empty(65536, np.float32)
    pack.widen(raw, "F16", out)
    np.testing.assert_array_equal(out.view(np.uint32)[finite], expected.view(np.uint32)[finite])
    assert pack.cast(raw, "F16", out, "float32").nonfinite == 2 * 1024
    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize(("source", "bad"), [("BF16", 1), ("F32", 1), ("F64", 1)])
def test_cast_to_half_counts_what_it_cannot_hold(source: str, bad: int) -> None:
    raw, values = as_held(np.array([[1.0, -65504.0, 1e6, -1e30, np.nan, 1e-9]]), source)
    out = np.empty((1, 6), np.float16)
    counts = pack.cast(raw, source, out, "float16")
    assert (counts.nonfinite, counts.overflowed) == (bad, 3 if source == "BF16" and values[0, 1] < -65520 else 2)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, values.astype(np.float16))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 0xFFFFFFFF), min_size=1, max_size=40))
def test_bfloat16_is_rounded_as_ml_dtypes_does(bits: list[int]) -> None:
    values = np.array([*bits, 0x7F7F8000, 0xFF7FFFFF, 0x7FC00001, 1, 0x8000], np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    found = storage.widen(storage.narrow(values, "bfloat16"), "bfloat16")
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def signs_of(values: np.ndarray) -> np.ndarray:
    return np.where(np.signbit(values), 128, 0).astype(np.uint8)


@pytest.mark.parametrize(("kind", "dtype"), [("e4m3", ml_dtypes.float8_e4m3fn), ("e5m2", ml_dtypes.float8_e5m2)])
def test_8_bit_floats_are_those_of_ml_dtypes(kind: str, dtype: type) -> None:
    """Every code back; there, every value half way between two codes, those beside it, and those past the largest."""
    codes = np.arange(256, dtype=np.uint8)
    values = reference.float8_values(kind)
    np.testing.assert_array_equal(values, codes.view(dtype).astype(np.float32))
    finite = np.unique(values[np.isfinite(values)])
    middles = (finite[1:] + finite[:-1]) / 2
    tried = np.concatenate(
        [finite, middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, -finite[-1])]
    )
    found, scratch = np.empty(tried.size, np.uint8), np.empty((3, tried.size), np.uint32)
    float8.encode(np.abs(tried, dtype=np.float32), kind, signs_of(tried), found, scratch)
    np.testing.assert_array_equal(values[found], tried.astype(dtype).astype(np.float32))
    np.testing.assert_array_equal(np.signbit(values[found]), np.signbit(tried))
    past = np.array([1e6, -1e6, np.inf, -np.inf], np.float32)
    float8.encode(np.abs(past), kind, signs_of(past), found[:4], scratch)
    np.testing.assert_array_equal(values[found[:4]], finite[[-1, 0, -1, 0]])


@pytest.mark.parametrize("scheme", SCHEMES, ids=NAMES)
def test_error_is_no_larger_than_with_rounding_in_float64(scheme: Scheme) -> None:
    """The same format, everything in float64 up to the stored scale."""
    weight = (np.random.default_rng(8).standard_normal((8, 640)) * 0.03).astype(np.float32)
    words, scales, _ = packed(weight, "F32", scheme)
    back = reference.dequantize(words, scales, 640, scheme)
    fitted = scheme.for_width(640)
    wide = np.zeros((8, -(-640 // fitted.group_size) * fitted.group_size))
    wide[:, :640] = weight
    groups = wide.reshape(8, -1, fitted.group_size)
    whole = scheme.scale_per == "tensor"
    largest = np.abs(groups).max(axis=(0, 2) if whole else 2, keepdims=True) / scheme.max_magnitude
    steps = storage.widen(storage.narrow(largest.astype(np.float32), scheme.scale_dtype), scheme.scale_dtype)
    if scheme.kind in ("group", "int8"):
        exact = np.clip(np.rint(groups / steps), -scheme.max_int, scheme.max_int) * steps
    else:
        kind = ml_dtypes.float8_e4m3fn if scheme.kind == "e4m3" else ml_dtypes.float8_e5m2
        exact = (
            np.clip(groups / steps, -scheme.max_magnitude, scheme.max_magnitude).astype(kind).astype(np.float64) * steps
        )
    best = np.sqrt(np.mean((exact.reshape(8, -1)[:, :640] - weight) ** 2))
    assert np.sqrt(np.mean((back - weight.astype(np.float64)) ** 2)) <= best * (1 + 1e-6)
