"""A GPU's attention of one query token, its launches and their host code, run by PoCL on this CPU, against numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from llm_build.targets.tvm_import import import_tvm

import_tvm()

import tvm  # noqa: E402
from tvm import ir  # noqa: E402

from llm_build.lowering.backends import gpu as gpu_code  # noqa: E402
from llm_build.lowering.machine import machine_of  # noqa: E402
from llm_build.lowering.schedules.gpu import decode_attention as schedule  # noqa: E402
from llm_build.lowering.schedules.gpu.cache import PAGE  # noqa: E402
from llm_build.ops.kv_cache import CacheLayout  # noqa: E402
from tests.targets.test_kernels_of_ranks import TARGET  # noqa: E402

SCALE = 0.11
RANDOM = np.random.default_rng(0)
PLAIN = CacheLayout(1, 2, 2, 128, 0, ())
CASES = {
    "one row": (PLAIN, [[1], [15], [16], [63], [64], [65], [128], [300]]),
    "many parts": (PLAIN, [[2000], [1300, 1, 700]]),
    "short and long": (PLAIN, [[40, 0, 300]]),
    "four rows": (replace(PLAIN, query_heads=8), [[128], [300, 64, 5]]),
    "eight rows": (replace(PLAIN, query_heads=8, key_heads=1), [[129], [300, 64, 900]]),
    "rows in two blocks": (replace(PLAIN, query_heads=12, key_heads=1), [[300, 7]]),
    "64 wide": (replace(PLAIN, query_heads=16, head_dim=64), [[257], [900, 10]]),
    "80 wide": (replace(PLAIN, query_heads=6, head_dim=80), [[193], [700, 1, 20]]),
    "256 wide": (replace(PLAIN, query_heads=8, head_dim=256, key_heads=1), [[65], [400, 3]]),
    "widths that do not divide": (replace(PLAIN, query_heads=4, head_dim=20), [[500, 3]]),
    "narrow": (replace(PLAIN, head_dim=8), [[300, 3]]),
    "100 wide": (replace(PLAIN, head_dim=100), [[140, 33]]),
    "window": (replace(PLAIN, window=37, sinks=5, soft_cap=1.5), [[20, 300, 36], [1000]]),
}  # fmt: skip

PREFETCHED = ("one row", "many parts", "four rows", "80 wide", "window")  # with registers to load pages ahead


@dataclass
class Kernel:
    """The host code of a schedule, and how often it launched what."""

    host: Any
    launched: list[str]


@pytest.fixture(scope="module")
def opencl(pocl: None) -> Any:
    """Memory of the device is the host's: apache-tvm's wheel has no OpenCL runtime."""
    tvm.register_global_func("device_api.opencl", tvm.get_global_func("device_api.cpu"), override=True)
    return tvm.runtime.device("opencl", 0)


def built(layout: CacheLayout, rows_per_thread: int) -> Kernel:
    from tests.targets.opencl import Kernels

    machine = machine_of(TARGET, "x_")
    kernel = schedule.decode(layout, replace(machine.traits, rows_per_thread=rows_per_thread)).with_attr(
        "global_symbol", "decode"
    )
    module = ir.IRModule({"decode": kernel})
    with machine.tvm, tvm.transform.PassContext(opt_level=3):
        for _, transform in gpu_code.passes(machine):
            module = transform(module)
        parts = [
            ir.IRModule({v: f for v, f in module.functions_items() if gpu_code.is_host(f) == host})
            for host in (True, False)
        ]
        for passes, place in ((gpu_code.HOST, 0), (gpu_code.DEVICE, 1)):
            for _, transform in passes:
                parts[place] = transform(parts[place])
        source = str(gpu_code.source_code(parts[1], machine).inspect_source())
        host = tvm.get_global_func("target.build.llvm")(parts[0], machine.tvm.host)
    kernels, found = Kernels(source), Kernel(host, [])
    for name in kernels.signatures:
        tvm.register_global_func(name, counted(kernels.function(name), name, found.launched), override=True)
    return found


def counted(function: Any, name: str, launched: list[str]) -> Any:
    def call(*arguments: Any) -> None:
        launched.append(name)
        function(*arguments)

    return call


def filled(layout: CacheLayout, lengths: list[int]) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Keys and values of each sequence, (tokens, key heads, D), and [pages, indptr, table, last lengths]; what no token
    fills is NaN."""
    heads, width = layout.key_heads, layout.head_dim
    counts = [-(-n // PAGE) for n in lengths]
    pages = np.full((sum(counts) + 1, 2, heads, PAGE * width), np.nan, np.float32)
    table = RANDOM.permutation(len(pages))[: sum(counts)].astype(np.int32)
    indptr = np.cumsum([0, *counts]).astype(np.int32)
    keys, values = ([RANDOM.standard_normal((n, heads, width)).astype(np.float32) for n in lengths] for _ in range(2))
    for s, n in enumerate(lengths):
        for token in range(n):
            page, t = pages[table[indptr[s] + token // PAGE]], token % PAGE
            page[0].reshape(heads, width, PAGE)[:, :, t] = keys[s][token]
            page[1].reshape(heads, PAGE, width)[:, t] = values[s][token]
    last = np.array([(n - 1) % PAGE + 1 if n else 0 for n in lengths], np.int32)
    return keys, values, [pages.reshape(-1, 2, heads, PAGE, width), indptr, table, last]


def expected(layout: CacheLayout, q: np.ndarray, k: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, float]:
    """One query row, the sequence's last token: (D,) and log2 of the sum of exponentials."""
    scores, tokens = (k.astype(np.float64) @ q) * SCALE, np.arange(len(k))
    if layout.soft_cap:
        scores = layout.soft_cap * np.tanh(scores / layout.soft_cap)
    if layout.window:
        near = len(k) - 1 - tokens < layout.window - layout.sinks
        scores = np.where(near | (tokens < layout.sinks), scores, -np.inf)
    weights = np.exp(scores)
    return weights @ value / weights.sum(), float(np.log2(weights.sum()))


@pytest.mark.parametrize(
    ("case", "rows_per_thread"), [*((case, 4) for case in CASES), *((case, 8) for case in PREFETCHED)]
)
def test_against_numpy(case: str, rows_per_thread: int, opencl: Any):
    """The result and its lse, also of a sequence without tokens; short contexts in one launch."""
    layout, batches = CASES[case]
    kernel = built(layout, rows_per_thread)
    for lengths in batches:
        check(layout, kernel, lengths, opencl)


def check(layout: CacheLayout, kernel: Kernel, lengths: list[int], device: Any) -> None:
    keys, values, (pages, *table) = filled(layout, lengths)
    batch, shared = len(lengths), layout.query_heads // layout.key_heads
    q = RANDOM.standard_normal((batch, layout.query_heads, layout.head_dim)).astype(np.float32)
    out, lse = np.full_like(q, np.nan), np.full(q.shape[:2], np.nan, np.float32)
    start, position = np.zeros(batch, np.int32), np.array(lengths, np.int32) - 1
    arrays = [q, pages, *table, start, position, out, lse]
    passed = [tvm.runtime.empty(a.shape, str(a.dtype), device).copyfrom(a) for a in arrays]
    kernel.launched.clear()
    kernel.host["decode"](*passed, 0, 1.0, 1e4, -SCALE if layout.window else SCALE)
    out, lse = passed[-2].numpy(), passed[-1].numpy()
    pages_of_one = sum(-(-n // PAGE) for n in lengths) / batch
    assert len(kernel.launched) == 1 or pages_of_one > schedule.SINGLE_SPLIT_PAGES
    assert len(kernel.launched) == 2 or pages_of_one < 2 * schedule.SINGLE_SPLIT_PAGES
    for s, length in enumerate(lengths):
        for head in range(layout.query_heads):
            if not length:
                assert np.all(out[s, head] == 0)
                assert lse[s, head] < -1e29
                continue
            k, value = (each[s][:, head // shared] for each in (keys, values))
            row, log = expected(layout, q[s, head], k, value)
            assert np.abs(out[s, head] - row).max() < 3e-6
            assert abs(lse[s, head] - log) < 1e-5
