"""The search of quant/methods/mse.py as machine code: the same float32 arithmetic in the same order, eight groups in a
vector, all candidates while the weights are in registers and first cache. Its results are bit for bit those of numpy.

A product and a sum must not become one rounding, which TVM's LLVM would allow: so FMA is turned off. That can be done
on x86 alone, and scales in float16 need its conversion in hardware; elsewhere numpy does the search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from llm_build.targets import cpu
from llm_build.targets.tvm_import import import_tvm

tvm = import_tvm()

from tvm import tirx  # noqa: E402

from llm_build.lowering.schedules.cpu import vector as v  # noqa: E402
from llm_build.lowering.schedules.ir import T  # noqa: E402

LANES = 8
TOGETHER = 4  # candidates: each sum waits for its last addition, so several are under way
_ALIGNMENT = 64  # bytes
_DTYPES = ("float16", "float32")

# weights (G, S), scales of rtn (G,), both float32 -> the scales to store (G,), float32, valid until the next call
Search = Callable[[np.ndarray, np.ndarray], np.ndarray]


def compiled_search(size: int, max_int: int, steps: Sequence[float], dtype: str) -> Search | None:
    """The search for groups of ``size`` weights; None where this machine is none that it can be compiled for."""
    if dtype not in _DTYPES or not cpu.runs_here("x86-64-v3", (), "x86_64-linux-gnu"):
        return None
    function = _compile(size, max_int, tuple(steps), dtype)
    room: dict[int, list[np.ndarray]] = {}  # groups -> memory of a call: fresh memory costs page faults

    def search(weights_GS: np.ndarray, nearest_G: np.ndarray) -> np.ndarray:
        count = len(nearest_G)
        if count not in room:
            room.clear()
            room[count] = [_aligned((count, size)), _aligned((count,)), _aligned((count,))]
        weights, nearest, best_G = room[count]
        np.copyto(weights, weights_GS)
        np.copyto(nearest, nearest_G)
        function(weights, nearest, best_G)
        return best_G

    return search


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Memory that TVM takes as it is: it begins at a whole cache line."""
    count = int(np.prod(shape))
    memory = np.empty(count + _ALIGNMENT // 4, np.float32)
    start = -memory.ctypes.data % _ALIGNMENT // 4
    return memory[start : start + count].reshape(shape)


@lru_cache(maxsize=8)
def _compile(size: int, max_int: int, steps: tuple[float, ...], dtype: str) -> Callable[..., None]:
    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3", "mattr": ["-fma"]})
    kernel = _kernel(size, max_int, steps, dtype).with_attr("global_symbol", "best_scales")
    built = tvm.tirx.build(kernel, tvm.target.Target(target, host=target))["best_scales"]

    def call(*arrays: np.ndarray) -> None:
        built(*(tvm.runtime.from_dlpack(array) for array in arrays))

    return call


def _kernel(size: int, max_int: int, steps: tuple[float, ...], dtype: str) -> Any:
    groups = v.size("groups")

    def body(weights: Any, nearest: Any, best: Any) -> None:
        with v.loop(tirx.floordiv(groups + LANES - 1, LANES)) as block:
            first = T.Bind(T.min(block * LANES, groups - LANES))
            turned = v.scratch(size * LANES)
            sign, peak, span = _turn(weights, first, size, turned)
            chosen, error = v.scratch(LANES), v.scratch(LANES)
            v.store(chosen, 0, v.load(nearest, first, LANES), LANES)
            v.store(error, 0, v.splat(float("inf"), LANES), LANES)
            tried = (None, *steps)
            for some in (tried[at : at + TOGETHER] for at in range(0, len(tried), TOGETHER)):
                scales = [
                    T.Bind(v.load(nearest, first, LANES) if step is None else _scale(peak, max_int + step, dtype))
                    for step in some
                ]
                _keep_better(turned, size, max_int, scales, span, chosen, error)
            v.store(best, first, v.load(chosen, 0, LANES) * sign, LANES)

    arguments = [v.Arg("weights", (groups, size)), v.Arg("nearest", (groups,)), v.Arg("best", (groups,))]
    return v.kernel(arguments, body)


def _turn(weights: Any, first: Any, size: int, turned: Any) -> tuple[Any, Any, Any]:
    """Fill ``turned`` with the groups from ``first`` on, a vector for each place, in units of the largest weight. Its
    sign, its magnitude, and that or 1 where it is 0."""
    low, high = v.scratch(LANES), v.scratch(LANES)
    v.store(low, 0, v.gather(weights, first * size, size, LANES), LANES)
    v.store(high, 0, v.load(low, 0, LANES), LANES)
    with v.loop(size) as place:
        weight = T.Bind(v.gather(weights, first * size + place, size, LANES))
        v.store(turned, place * LANES, weight, LANES)
        v.store(low, 0, T.min(v.load(low, 0, LANES), weight), LANES)
        v.store(high, 0, T.max(v.load(high, 0, LANES), weight), LANES)
    zero, one = v.splat(0.0, LANES), v.splat(1.0, LANES)
    smallest, largest = T.Bind(zero - v.load(low, 0, LANES)), T.Bind(v.load(high, 0, LANES))
    sign = T.Bind(tirx.Select(smallest > largest, v.splat(-1.0, LANES), one))
    peak = T.Bind(T.max(largest, smallest))
    span = T.Bind(tirx.Select(tirx.EQ(peak, zero), one, peak))
    unit = T.Bind(span * sign)
    with v.loop(size) as place:
        v.store(turned, place * LANES, v.load(turned, place * LANES, LANES) / unit, LANES)
    return sign, peak, span


def _scale(peak: Any, steps: float, dtype: str) -> Any:
    """The scale that puts the largest weight at so many steps, as it is stored."""
    scale = peak / v.splat(float(steps), LANES)
    return v.cast(v.cast(scale, "float16", LANES), "float32", LANES) if dtype == "float16" else scale


def _keep_better(
    turned: Any, size: int, max_int: int, scales: Sequence[Any], span: Any, chosen: Any, error: Any
) -> None:
    """Compare the errors of a few scales with the best so far, in order."""
    most, least = v.splat(float(max_int + 1), LANES), v.splat(float(-max_int), LANES)
    widths = [T.Bind(scale / span) for scale in scales]
    inverses = [T.Bind(v.splat(1.0, LANES) / width) for width in widths]
    totals = v.scratch(len(scales) * LANES)
    for index in range(len(scales)):
        v.store(totals, index * LANES, v.splat(0.0, LANES), LANES)
    with v.loop(size) as place:
        weight = T.Bind(v.load(turned, place * LANES, LANES))
        for index, inverse in enumerate(inverses):
            ratio = T.Bind(weight * inverse)
            off = T.Bind(ratio - T.max(T.min(tirx.nearbyint(ratio), most), least))
            v.store(totals, index * LANES, v.load(totals, index * LANES, LANES) + off * off, LANES)
    for index, (scale, width) in enumerate(zip(scales, widths, strict=True)):
        found = T.Bind(v.load(totals, index * LANES, LANES) * (width * width))
        better = found < v.load(error, 0, LANES)
        v.store(chosen, 0, tirx.Select(better, scale, v.load(chosen, 0, LANES)), LANES)
        v.store(error, 0, tirx.Select(better, found, v.load(error, 0, LANES)), LANES)
