"""Rounded inputs: the plain loops and every CPU kernel against the numpy reference; torch rounds as they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import tvm

from llm_build.lowering.kernel_modules import Schedules
from llm_build.lowering.schedules.cpu import integers
from llm_build.lowering.schedules.cpu.vector import Isa
from llm_build.ops import emit as op
from llm_build.ops import linear as relax
from llm_build.ops import rounded_inputs as inputs
from llm_build.quant import reference
from llm_build.quant.layout import BYTE_LARGEST, Scheme
from llm_build.targets import cpu
from llm_build.verification.inputs import rounded

KINDS = ("int8", "e4m3", "e5m2")
TARGETS = {
    "loops": (None, "x86-64-v2", ()),
    "4-lanes": (Isa(4, False), "x86-64-v2", ()),
    "8-lanes": (Isa(8, True), "x86-64-v3", ()),
    "16-lanes": (Isa(16, True), "x86-64-v4", ()),
    "vnni": (Isa(16, True, vnni=True), "x86-64-v4", ("avx512vnni",)),
    "vnni-8-lanes": (Isa(8, True, vnni=True), "x86-64-v4", ("avx512vnni",)),
}
COMPUTE = {"row_scale": inputs._row_scale, "rounded": inputs._rounded, "rounded_linear": inputs.rounded_product}
Run = Callable[..., np.ndarray]


@pytest.fixture(params=list(TARGETS))
def run(request: pytest.FixtureRequest) -> Run:
    """(label, tensors with symbolic rows, other tensors, empty output) -> the output."""
    isa, level, features = TARGETS[request.param]
    if not {*cpu.implied_features(level), *features} <= cpu.host_features():
        pytest.skip(f"this CPU is not {level} with {features}")
    target = {"kind": "llvm", "mcpu": level, "mattr": [f"+{name}" for name in features]}

    built: dict[op.Label, Any] = {}

    def call(label: op.Label, rows: list[np.ndarray], rest: list[np.ndarray], out: np.ndarray) -> Any:
        if label not in built:
            built[label] = compiled(label, rows, rest)
        tensors = [tvm.runtime.tensor(a) for a in (*rows, *rest, out)]
        built[label](*tensors)
        return tensors[-1].numpy()

    def compiled(label: op.Label, rows: list[np.ndarray], rest: list[np.ndarray]) -> Any:
        if isa is None:
            shapes = [(("rows", *a.shape[1:]), str(a.dtype)) for a in rows] + [(a.shape, str(a.dtype)) for a in rest]
            function = op.prim_func(label, COMPUTE[label.op], tuple(shapes))
        else:
            function = Schedules("cpu")[label.op](label, isa)
        function = function.with_attr("global_symbol", "main")
        return tvm.tirx.build(function, tvm.target.Target(target, host=target))["main"]

    return call


def hard(rows: int, k: int) -> np.ndarray:
    """Zeros, negative zeros, ties, subnormal scales, huge values, one row of nothing."""
    x = np.random.default_rng(rows * k).standard_normal((rows, k)).astype(np.float32)
    x[0, :8] = [0.0, -0.0, 127.0, 0.5, 1.5, -2.5, 1e-9, -126.5]
    if rows > 3:
        x[1] = 0
        x[2] *= np.float32(1e-43)
        x[3] *= np.float32(1e37)
    return x


def words_of(codes: np.ndarray) -> np.ndarray:
    rows, k = codes.shape
    padded = np.zeros((rows, -(-k // 4) * 4), np.uint8)
    padded[:, :k] = codes
    return padded.view(np.uint32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [96, 70])
def test_rounding(run: Run, kind: str, k: int):
    x = hard(6, k)
    codes, scales = reference.rounded_input(x, kind)
    found = run(inputs.RowScaleLabel(k, kind), [x], [], np.full((6, 1), np.nan, np.float32))
    np.testing.assert_array_equal(found, scales)
    words = words_of(codes)
    found = run(inputs.RoundedLabel(k, kind), [x, scales], [], np.full(words.shape, 0xDEADBEEF, np.uint32))
    np.testing.assert_array_equal(found.view(np.uint8), words.view(np.uint8))


@pytest.mark.parametrize(
    ("n", "k", "kind"), [(40, 128, "int8"), (71, 202, "int8"), (71, 202, "e4m3"), (40, 90, "e5m2")]
)
def test_product(run: Run, n: int, k: int, kind: str):
    random = np.random.default_rng(n)
    whole = "group" if kind == "int8" else "tensor"
    scheme = Scheme("t", kind, 8, 0, "NK", "float16", "uint32", True, True, (), kind, "dynamic", whole)
    stored = list(reference.quantize(random.standard_normal((n, k)).astype(np.float32), scheme))
    weight = reference.dequantize(*stored, k, scheme).astype(np.float64)
    label = inputs.RoundedLinearLabel(relax.Linear(n, k, scheme).storage, True, True, activation=kind)
    bias = random.standard_normal(n).astype(np.float16)
    for rows in (1, integers.GEMV_MAX_ROWS + 1, 23):
        x, residual = random.standard_normal((rows, k)), random.standard_normal((rows, n)).astype(np.float32)
        codes, scales = reference.rounded_input(x.astype(np.float32), kind)
        given = [words_of(codes), scales, residual]
        found = run(label, given, [*stored, bias], np.full((rows, n), np.nan, np.float32))
        expected = (reference.byte_values(kind)[codes] * scales.astype(np.float64)) @ weight.T + bias + residual
        assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_the_largest_sum_of_integers_is_exact(run: Run):
    """127 * 127 * 2048 is past what float32 counts, and far from what int32 holds."""
    k, n = 2048, 32
    scheme = Scheme("t", "int8", 8, 0, "NK", "float16", "uint32", True, True, (), "int8", "dynamic")
    label = inputs.RoundedLinearLabel(relax.Linear(n, k, scheme).storage, False, False, activation="int8")
    words = np.full((1, k // 4), 0x81818181, np.uint32)  # -127
    stored = [np.full((n, k // 4), 0x81818181, np.uint32), np.ones((n, 1), np.float32)]
    found = run(label, [words, np.ones((1, 1), np.float32)], stored, np.zeros((1, n), np.float32))
    np.testing.assert_allclose(found, np.float32(127 * 127 * k), rtol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_rounds_as_the_reference(kind: str):
    x = hard(6, 70)
    codes, scales = reference.rounded_input(x, kind)
    with np.errstate(over="ignore"):
        expected = reference.byte_values(kind)[codes] * scales
    np.testing.assert_array_equal(rounded(torch.from_numpy(x), kind).numpy(), expected)


def test_rules_in_numbers():
    """quant/layout.py, spelled out: half to even, -0 is 0 for integers and keeps its sign as a float."""
    x = np.array([[127.0, 0.5, 1.5, -0.5, -2.5, -0.0]], np.float32)
    codes, scales = reference.rounded_input(x, "int8")
    assert scales.tolist() == [[1.0]]
    assert codes.view(np.int8).tolist() == [[127, 0, 2, 0, -2, 0]]
    codes, scales = reference.rounded_input(np.array([[448.0, -0.0, 17.0, 19.0]], np.float32), "e4m3")
    assert (scales.tolist(), BYTE_LARGEST["e4m3"]) == ([[1.0]], 448.0)
    assert codes.tolist() == [[0x7E, 0x80, 0x58, 0x5A]]  # 17 lies between 16 and 18, 19 between 18 and 20
