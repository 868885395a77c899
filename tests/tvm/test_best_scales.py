"""mse's search as machine code finds what numpy finds, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from llm_build.lowering.best_scales import compiled_search
from llm_build.quant import layout, storage
from llm_build.quant.methods import mse
from llm_build.targets import cpu

pytestmark = pytest.mark.skipif(
    not cpu.runs_here("x86-64-v3", (), "x86_64-linux-gnu"), reason="this CPU is not x86-64-v3: numpy searches"
)


def groups(count: int, size: int) -> np.ndarray:
    """Of all kinds: normal, with an outlier, zeros, subnormal scales, one sign, equal weights, large ones."""
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((count, size)) * rng.uniform(1e-3, 2, (count, 1))).astype(np.float32)
    weights[0] = 0
    weights[1] *= 1e-6
    weights[2] = np.abs(weights[2])
    weights[3] = -np.abs(weights[3])
    weights[4] = 0.5
    weights[5, 3] = 40.0
    weights[6] *= 1e4
    weights[7] = -0.0
    weights[8] *= 3e-5
    return weights


def nearest_of(weights: np.ndarray, scheme: layout.Scheme) -> np.ndarray:
    scales, _ = storage.scales(np.abs(weights).max(axis=1) / np.float32(scheme.max_int), scheme.dtype)
    return scales


@pytest.mark.parametrize(("bits", "size"), [(4, 32), (3, 40), (8, 32), (4, 128), (6, 35)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_search_is_numpys_to_the_bit(bits: int, size: int, dtype: str) -> None:
    scheme = layout.Scheme("test", "group", bits, size, "NK", dtype, "uint32", True, True)
    search = compiled_search(size, scheme.max_int, mse.STEPS, dtype)
    assert search
    for count in (9, 64, 1003):
        weights = groups(count, size)
        nearest = nearest_of(weights, scheme)
        found = storage.narrow(search(weights, storage.widen_scales(nearest, dtype)), dtype)
        assert found.tobytes() == mse.best_scales(weights.T, nearest, scheme).tobytes()


def test_the_method_takes_it_where_scales_stay_finite_and_groups_are_enough() -> None:
    scheme = layout.Scheme("test", "group", 4, 32, "NK", "float16", "uint32", True, True)
    real = compiled_search(32, scheme.max_int, mse.STEPS, "float16")
    assert real
    calls: list[int] = []

    def search(weights: np.ndarray, nearest: np.ndarray) -> np.ndarray:
        calls.append(len(nearest))
        return real(weights, nearest)

    choose, plain = mse.prepare(scheme, None, 0.0, search), mse.prepare(scheme, None, 0.0)
    for count, large in ((4, 1.0), (64, 1.0), (64, 4e4)):
        weights = groups(64, 32)[:count] * np.float32(large)
        nearest = nearest_of(weights, scheme)
        assert choose(weights.copy(), nearest).tobytes() == plain(weights.copy(), nearest).tobytes()
    assert calls == [64]


def test_it_is_for_scales_that_it_can_round() -> None:
    assert compiled_search(32, 7, mse.STEPS, "bfloat16") is None
