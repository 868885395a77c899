"""Attention of many rows on tensor cores: ``python -m tools.gpu.attention prepare FOLDER``, and on a GPU ``check``.

``prepare`` compiles the kernels of each layout below on any machine, by mma.sync and by wgmma. ``check`` needs TVM's
runtime and numpy: it holds them against float64 over ragged batches with and without a past, windows and soft caps, and
prints how fast they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Layout:
    """What of CacheLayout these kernels look at; that one comes with TVM's compiler."""

    query_heads: int
    key_heads: int
    head_dim: int
    window: int = 0
    sinks: int = 0
    soft_cap: float = 0.0


PLAIN = Layout(32, 32, 128)
LAYOUTS = {
    "d128": PLAIN,
    "d64": Layout(8, 2, 64, window=33, sinks=5),
    "d80": Layout(4, 4, 80),
    "d96": Layout(8, 1, 96, window=150, sinks=70),
    "d112": Layout(14, 2, 112),
    "d192": Layout(4, 2, 192),
    "d256": Layout(8, 4, 256, window=64, soft_cap=50.0),
}
ARCH = {"mma": ["sm_80", "sm_90a"], "wgmma": ["sm_90a"]}
PAGE, SCALE = 16, 0.09
BATCHES = [  # tokens in the pages, new tokens
    ([0], [1]),
    ([37, 0, 16], [5, 9, 1]),
    ([300], [200]),
    ([64, 1, 129, 0], [64, 17, 128, 33]),
]
LIMIT, LOG_LIMIT = 4e-3, 5e-4  # float16 of numbers up to 4; float32 sums of 256 products


def prepare(folder: Path) -> None:
    from llm_build.targets.tvm_import import import_tvm

    tvm = import_tvm()
    from llm_build.lowering.backends import cuda
    from llm_build.lowering.machine import machine_of
    from llm_build.lowering.pipeline import _link
    from llm_build.lowering.progress import StageProgress
    from llm_build.lowering.schedules.gpu import attention
    from llm_build.ops.kv_cache import CacheLayout

    folder.mkdir(parents=True, exist_ok=True)
    layouts = {
        name: CacheLayout(layers=1, rotary_dim=0, inv_freq=(), dtype="float16", **asdict(layout))
        for name, layout in LAYOUTS.items()
    }
    for instruction, arch in ARCH.items():
        limits = {"max_threads_per_block": 1024, "max_shared_memory_bytes": 49152}
        machine = machine_of({
            "kind": "cuda", "triple": "x86_64-linux-gnu", "cpu": "", "features": [], "arch": arch, "library": "so",
            "supports": [], "limits": limits,
        })  # fmt: skip
        functions = {
            f"{kind}_{name}": make(layout, machine.traits).with_attr("global_symbol", f"{kind}_{name}")
            for name, layout in layouts.items()
            for kind, make in (("ragged", attention.prefill_ragged), ("paged", attention.prefill_paged))
        }
        module = tvm.IRModule(functions)
        for _, transform in cuda.passes(machine):
            module = transform(module)
        host = cuda.generate(module, machine, StageProgress(lambda *_: None, 0))
        host.export_library(
            str(folder / f"{instruction}.so"), fcompile=lambda *a, machine=machine, **k: _link(*a, machine=machine, **k)
        )
        print(folder / f"{instruction}.so", "built", flush=True)


@dataclass(frozen=True, slots=True)
class Batch:
    """Random queries, keys and values, as a layer of such a cache gets them; ``encoded``: ops/kv_cache.py."""

    layout: Layout
    past: list[int]
    new: list[int]
    windowed: bool
    q: np.ndarray
    k: list[np.ndarray]  # of each sequence: (past + new, key heads, D)
    v: list[np.ndarray]

    @property
    def encoded(self) -> float:
        return -SCALE if self.windowed else SCALE

    def rows(self) -> Iterator[tuple[int, int, int]]:
        """(row, sequence, position)"""
        row = 0
        for sequence, (past, new) in enumerate(zip(self.past, self.new, strict=True)):
            for token in range(new):
                yield row, sequence, past + token
                row += 1


def batch_of(layout: Layout, past: list[int], new: list[int], windowed: bool) -> Batch:
    random = np.random.default_rng(sum(past) + sum(new))

    def numbers(count: int, heads: int) -> np.ndarray:
        return random.standard_normal((count, heads, layout.head_dim)).astype(np.float16)

    both = [p + n for p, n in zip(past, new, strict=True)]
    k, v = ([numbers(n, layout.key_heads) for n in both] for _ in range(2))
    return Batch(layout, past, new, windowed, numbers(sum(new), layout.query_heads), k, v)


def expected(batch: Batch, own: bool) -> tuple[np.ndarray, np.ndarray]:
    """In float64: what rows see among the new tokens (``own``) or in the pages, and log2 of the sum of exponentials."""
    layout, group = batch.layout, batch.layout.query_heads // batch.layout.key_heads
    out, lse = np.zeros(batch.q.shape), np.full(batch.q.shape[:2], -1e30)
    for row, sequence, position in batch.rows():
        keys = np.arange(batch.past[sequence], position + 1) if own else np.arange(batch.past[sequence])
        if batch.windowed:
            keys = keys[(position - keys < layout.window - layout.sinks) | (keys < layout.sinks)]
        if not len(keys):
            continue
        for head in range(layout.query_heads):
            k, v = (x[sequence][keys, head // group].astype(np.float64) for x in (batch.k, batch.v))
            scores = k @ batch.q[row, head].astype(np.float64) * SCALE
            if layout.soft_cap:
                scores = layout.soft_cap * np.tanh(scores / layout.soft_cap)
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ v / weights.sum()
            lse[row, head] = (scores.max() + np.log(weights.sum())) / np.log(2)
    return out, lse


def pages_of(batch: Batch) -> tuple[np.ndarray, list[np.ndarray]]:
    """The pages with the past in them, shuffled, NaN where nothing is; and the page table's arrays."""
    layout, counts = batch.layout, [-(-n // PAGE) for n in batch.past]
    total, width = sum(counts), layout.head_dim
    table = np.random.default_rng(0).permutation(total + 1)[:total].astype(np.int32)
    pages = np.full((total + 1, 2, layout.key_heads, PAGE * width), np.nan, np.float16)
    slots = iter(table)
    for sequence, past in enumerate(batch.past):
        for start in range(0, past, PAGE):
            place, end = pages[next(slots)], min(start + PAGE, past)
            turned = place[0].reshape(layout.key_heads, width, PAGE)
            turned[:, :, : end - start] = batch.k[sequence][start:end].transpose(1, 2, 0)
            place[1].reshape(layout.key_heads, PAGE, width)[:, : end - start] = batch.v[sequence][start:end].transpose(
                1, 0, 2
            )
    last = np.array([(n - 1) % PAGE + 1 if n else 0 for n in batch.past], np.int32)
    whole = pages.reshape(total + 1, 2, layout.key_heads, PAGE, width)
    return whole, [offsets(counts), table if total else np.zeros(1, np.int32), last]


def offsets(counts: list[int]) -> np.ndarray:
    return np.cumsum([0, *counts]).astype(np.int32)


def check(folder: Path) -> None:
    """Raises AssertionError for a result that is not that of float64."""
    from llm_build.targets.cuda_runtime import load_for_running
    from llm_build.targets.tvm_import import import_tvm

    tvm = import_tvm(runtime_only=True)
    load_for_running()
    device = tvm.runtime.device("cuda", 0)
    for instruction in ARCH:
        library = tvm.runtime.load_module(str(folder / f"{instruction}.so"))
        worst, worst_log, cases = 0.0, 0.0, 0
        for name, layout in LAYOUTS.items():
            for past, new in BATCHES:
                for windowed in (False, True) if layout.window else (False,):
                    batch = batch_of(layout, past, new, windowed)
                    for own in (True, False):
                        error, log_error = compare(library, name, batch, own, device, tvm)
                        assert max(error / LIMIT, log_error / LOG_LIMIT) < 1, (
                            instruction,
                            name,
                            past,
                            new,
                            own,
                            windowed,
                        )
                        worst, worst_log, cases = max(worst, error), max(worst_log, log_error), cases + 1
        print(f"{instruction}: {cases} cases, at most {worst:.1e} off, logarithms {worst_log:.1e}", flush=True)
        for tokens in (2000, 8000):
            measure(library, instruction, tokens, device, tvm)


def compare(library: Any, name: str, batch: Batch, own: bool, device: Any, tvm: Any) -> tuple[float, float]:
    """How far a kernel's results and logarithms are from float64's."""

    def put(array: np.ndarray) -> Any:
        return tvm.runtime.tensor(np.ascontiguousarray(array), device)

    indptr, position = put(offsets(batch.new)), put(np.array([at for *_, at in batch.rows()], np.int32))
    out = put(np.full_like(batch.q, np.nan))
    lse = put(np.full(batch.q.shape[:2], np.nan, np.float32))
    past = np.array(batch.past, np.int32)
    scalars = (1, 0, 1.0, 1e4, batch.encoded)
    if own:
        new = [put(np.concatenate([x[p:] for x, p in zip(xs, batch.past, strict=True)])) for xs in (batch.k, batch.v)]
        library[f"ragged_{name}"](put(batch.q), indptr, *new, indptr, position, put(past), out, lse, *scalars)
    else:
        pages, table = pages_of(batch)
        arrays = [put(array) for array in (pages, *table, np.zeros_like(past))]
        library[f"paged_{name}"](put(batch.q), indptr, *arrays, position, out, lse, *scalars)
    wanted, wanted_log = expected(batch, own)
    seen = wanted_log > -1e29
    assert np.array_equal(lse.numpy()[~seen], wanted_log[~seen].astype(np.float32))
    log_error = np.abs(lse.numpy() - wanted_log)[seen]
    return float(np.abs(out.numpy() - wanted).max()), float(log_error.max()) if log_error.size else 0.0


def measure(library: Any, instruction: str, tokens: int, device: Any, tvm: Any) -> None:
    batch, scalars = batch_of(PLAIN, [0], [tokens], False), (1, 0, 1.0, 1e4, SCALE)
    arrays = [batch.q, offsets([tokens]), batch.k[0], batch.v[0], offsets([tokens]), np.arange(tokens, dtype=np.int32)]
    arrays += [np.zeros(1, np.int32), np.zeros_like(batch.q), np.zeros(batch.q.shape[:2], np.float32)]
    put = [tvm.runtime.tensor(array, device) for array in arrays]
    seconds = library.time_evaluator("ragged_d128", device, number=10, repeat=2)(*put, *scalars).min
    work = 2 * PLAIN.query_heads * PLAIN.head_dim * tokens**2  # causal: half of 4
    rate = f"{seconds * 1e3:.3f} ms, {work / seconds / 1e12:.0f} TFLOP/s"
    print(f"{instruction}: {tokens} tokens, causal, 32 x 128: {rate}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("prepare", "check"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    {"prepare": prepare, "check": check}[given.what](given.folder)
