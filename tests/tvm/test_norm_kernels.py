"""Norms and GELUs on the CPU, kernels and plain loops, against numpy in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from llm_build.lowering.kernel_modules import Schedules
from llm_build.lowering.schedules.cpu.vector import Isa
from llm_build.ops import gates
from llm_build.ops import norms as ops
from llm_build.ops.emit import Label, prim_func
from tests.tvm.test_kernels import close, empty, isa, normal, run

__all__ = ["isa"]  # the fixture


@pytest.mark.parametrize("width", [256, 50])
def test_rms_norm(isa: Isa, width: int):
    x, residual, weight = 3 * normal(5, width), normal(5, width), normal(width).astype(np.float16)
    for found in both(ops.RMSNormLabel(width, 1e-3, "float16", residual=False), ops._rms_norm, isa, x, weight):
        close(found, rms_normed(x, weight))
    for found in both(ops.RMSNormLabel(width, 1e-3, "float16", residual=True), ops._rms_norm, isa, x, residual, weight):
        close(found, rms_normed(x, weight) + residual)


def rms_normed(x: np.ndarray, weight: np.ndarray, eps: float = 1e-3) -> np.ndarray:
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps) * weight


def both(label: Label, compute: Any, isa: Isa, *arrays: np.ndarray) -> list[np.ndarray]:
    """Outputs, shaped as the first array, of an operation's kernel and of its plain loops."""
    signature = tuple((("rows", *a.shape[1:]) if a.ndim == 2 else a.shape, str(a.dtype)) for a in arrays)
    loops = prim_func(label, compute, signature)
    kernels = (Schedules("cpu")[label.op](label, isa), loops.without_attr("llm_build.op"))
    return [run(kernel, isa, *arrays, empty(*arrays[0].shape))[-1] for kernel in kernels]


@pytest.mark.parametrize("width", [256, 50])
def test_layer_norm(isa: Isa, width: int):
    x, weight, bias = 3 * normal(5, width) + 2, normal(width).astype(np.float16), normal(width).astype(np.float16)
    wide = x.astype(np.float64)
    centered = wide - wide.mean(1, keepdims=True)
    expected = centered / np.sqrt((centered**2).mean(1, keepdims=True) + 1e-3) * weight + bias
    for found in both(ops.LayerNormLabel(width, 1e-3, "float16"), ops._layer_norm, isa, x, weight, bias):
        close(found, expected)


@pytest.mark.parametrize(("runs", "widths"), [((5, 2), (18, 18)), ((1, 1), (96, 34))], ids=["heads", "full width"])
def test_norm_of_queries_and_keys(isa: Isa, runs: tuple[int, int], widths: tuple[int, int]):
    q_end, k_end = runs[0] * widths[0], runs[0] * widths[0] + runs[1] * widths[1]
    x, gains = normal(3, k_end + 37), [normal(width).astype(np.float16) for width in widths]
    label = ops.QKNormLabel(x.shape[1], runs[0], widths[0], runs[1], widths[1], 1e-3, "float16")
    parts = ((x[:, :q_end], runs[0], gains[0]), (x[:, q_end:k_end], runs[1], gains[1]))
    normed = [rms_normed(part.reshape(3, count, -1), gain).reshape(3, -1) for part, count, gain in parts]
    for found in both(label, ops._qk_norm, isa, x, *gains):
        close(found, np.concatenate([*normed, x[:, k_end:]], axis=1))


@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh"])
def test_gelu(isa: Isa, kind: str):
    x = (
        np.concatenate([np.linspace(-9, 9, 300), [0.0, -0.0, 100.0, -100.0, 1e-8]])
        .astype(np.float32)[None]
        .repeat(2, 0)
    )
    wide = x.astype(np.float64)
    erf = np.vectorize(math.erf)(wide * 0.5**0.5)
    inner = np.tanh((2 / np.pi) ** 0.5 * (wide + 0.044715 * wide**3))
    expected = 0.5 * wide * (1 + (erf if kind == "gelu" else inner))
    for found in both(gates.GeluLabel(x.shape[1], kind), gates._gelu, isa, x):
        assert np.abs(found - expected).max() < 1e-6
        assert np.array_equal(found[:, -3], [100, 100])
