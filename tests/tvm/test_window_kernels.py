"""Kernels of windows, soft caps, Gemma and experts against numpy in float64, for each register width."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from llm_build.lowering.kernel_modules import Schedules
from llm_build.lowering.schedules.cpu import attention, cache
from llm_build.lowering.schedules.cpu.vector import Isa
from llm_build.ops import experts, gates, gemma, rotary
from llm_build.ops.emit import LABEL, Label, prim_func
from llm_build.ops.kv_cache import CacheLayout, LayerAttention, encode
from tests.tvm.test_kernels import ISAS, LAYOUT, close, empty, filled_pages, isa, linear_case, normal, run

__all__ = ["isa"]  # a fixture
PAST, NEW = [70, 3, 40], [21, 5, 1]
SCALE = 0.3


def looked_at(layout: Any, q: np.ndarray, k: np.ndarray, value: np.ndarray, windowed: bool) -> np.ndarray:
    """One query row after ``k``'s last token but itself, as its layer sees them: (D,)."""
    scores, last = (k.astype(np.float64) @ q) * SCALE, len(k) - 1
    if layout.soft_cap:
        scores = layout.soft_cap * np.tanh(scores / layout.soft_cap)
    tokens = np.arange(len(k))
    near = tokens > last - (layout.window - layout.sinks)
    weights = np.exp(scores) * (near | (tokens < layout.sinks) if windowed and layout.window else 1)
    return weights @ value / weights.sum()


@pytest.mark.parametrize("isa", ISAS[:2], indirect=True, ids=["16-lanes", "8-lanes"])
def test_attention_through_a_window(isa: Isa):
    """New tokens against the cache and among themselves, merged; then the same rows' last ones by decoding: in a layer
    with the window, and in one without."""
    layout = replace(LAYOUT, window=33, sinks=5, soft_cap=1.5)
    kernels = [make(layout, isa) for make in (attention.prefill_paged, attention.prefill_ragged, attention.decode)]
    for windowed in (True, False):
        check_attention(layout, isa, kernels, windowed)


def check_attention(layout: CacheLayout, isa: Isa, kernels: list[Any], windowed: bool) -> None:
    keys, values, pages, table = filled_pages(PAST, isa)
    total, indptr = sum(NEW), np.cumsum([0, *NEW]).astype(np.int32)
    q, fresh = normal(total, 6, 20), [normal(total, 2, 20) for _ in range(2)]
    position = np.concatenate([np.arange(p, p + n) for p, n in zip(PAST, NEW, strict=True)]).astype(np.int32)
    blank, zero, start = (np.full_like(q, np.nan), empty(total, 6)), np.zeros(3, np.int32), np.array(PAST, np.int32)
    rope, scale = (0, 1.0, 1e4), encode(LayerAttention(SCALE, windowed))
    paged, ragged, decode = kernels
    cross = run(paged, isa, q, indptr, pages, *table, zero, position, *blank, 0, *rope, scale)[8:10]
    own = run(ragged, isa, q, indptr, *fresh, indptr, position, start, *blank, 1, *rope, scale)[7:9]
    merged = run(cache.merge(layout, isa), isa, *own, *cross)[0]
    for row in range(total):
        s = int(np.searchsorted(indptr, row, "right")) - 1
        span = slice(indptr[s], row + 1)
        k, value = (np.concatenate([old[s], new[span]]) for old, new in zip((keys, values), fresh, strict=True))
        for head in range(6):
            expected = looked_at(layout, q[row, head], k[:, head // 3], value[:, head // 3], windowed)
            assert np.abs(merged[row, head] - expected).max() < 3e-6
    last = np.array(PAST, np.int32) - 1
    found = run(decode, isa, q[:3], pages, *table, zero, last, blank[0][:3], blank[1][:3], *rope, scale)[7]
    for s in range(3):
        for head in range(6):
            expected = looked_at(layout, q[s, head], keys[s][:, head // 3], values[s][:, head // 3], windowed)
            assert np.abs(found[s, head] - expected).max() < 3e-6


def both(label: Label, compute: Any, isa: Isa, shape: Any, *arrays: np.ndarray) -> list[Any]:
    """Outputs of an operation's kernel and of its plain loops."""
    signature = tuple((a.shape, str(a.dtype)) for a in arrays)
    loops = prim_func(label, compute, signature).without_attr(LABEL)
    return [run(kernel, isa, *arrays, empty(*shape))[-1] for kernel in (Schedules("cpu")[label.op](label, isa), loops)]


def test_gemma(isa: Isa):
    width = 50
    x, residual, weight = normal(5, width), normal(5, width), normal(width).astype(np.float16)
    wide = x.astype(np.float64)
    normed = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-3) * (1 + weight.astype(np.float64))
    label = gemma.GemmaNormLabel(width, 1e-3, "float16", residual=True)
    for found in both(label, gemma._norm_add, isa, x.shape, x, residual, weight):
        close(found, normed + residual)
    for found in both(gemma.SoftCapLabel(width, 0.7), gemma._soft_cap, isa, x.shape, x):
        close(found, 0.7 * np.tanh(wide / 0.7))
    for found in both(gemma.ScaledLabel(width, 8.0), gemma._scaled, isa, x.shape, x):
        close(found, 8 * wide)
    gate_up = 3 * normal(5, 2 * width)
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=1)
    gelu = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    for found in both(gates.GeluMulLabel(width), gates.gelu_gate, isa, (5, width), gate_up):
        close(found, gelu * up)


def test_heads_are_normed_and_turned(isa: Isa):
    width = 10
    label = gemma.HeadNormRotaryLabel(4, 2, width, 1e-3, "float32", theta=1e4, factor=8.0)
    qkv, positions, weights = normal(3, 8, width), np.array([0, 5, 999], np.int32), normal(2, width)
    wide, half = qkv.astype(np.float64), width // 2
    gain = 1 + np.repeat(weights, [4, 2], axis=0)
    normed = wide[:, :6] / np.sqrt((wide[:, :6] ** 2).mean(2, keepdims=True) + 1e-3) * gain
    angle = (positions[:, None] * 1e4 ** (-np.arange(half) * 2 / width) / 8)[:, None]
    low, high = normed[..., :half], normed[..., half:]
    turned = [low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)]
    expected = np.concatenate([np.concatenate(turned, 2), wide[:, 6:]], 1)
    arrays = (qkv, positions, *weights)
    for found in both(label, gemma._head_norm_rotary, isa, qkv.shape, *arrays):
        close(found, expected, 2e-5)  # float32 angles of up to 125 radians


def test_heads_are_turned(isa: Isa):
    inv_freq = (1.0, 0.25, 0.125, 0.01, 0.0)
    qkv, positions = normal(3, 8, 10), np.array([0, 5, 99], np.int32)
    wide, angle = qkv.astype(np.float64), (positions[:, None] * np.array(inv_freq))[:, None]
    low, high = wide[:, :6, :5], wide[:, :6, 5:]
    turned = [low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)]
    expected = np.concatenate([np.concatenate(turned, 2), wide[:, 6:]], 1)
    for found in both(rotary.RotaryLabel(4, 2, inv_freq), rotary._rotary, isa, qkv.shape, qkv, positions):
        close(found, expected, 2e-5)  # float32 angles of up to 99 radians


@pytest.mark.parametrize("shared", [True, False])
def test_each_pair_reads_its_own_expert(isa: Isa, shared: bool):
    """``shared``: one row of x per token, else one per pair; few pairs, and enough of them for all threads."""
    count, outputs, top = 5, 9, 2
    stored, inputs = ((4, 32), 64) if shared else ("float16", 70)
    storage, arrays, weight = linear_case(count * outputs, inputs, stored)
    label = experts.ExpertLinearLabel(storage, outputs, top, shared)
    for rows in (3, 20):
        chosen = np.stack([np.random.default_rng(rows + r).permutation(count)[:top] for r in range(rows)])
        routes = np.concatenate([chosen, np.zeros((rows, top))], axis=1).astype(np.float32)
        x = normal(rows if shared else rows * top, inputs)
        matrices = weight.reshape(count, outputs, inputs)[chosen.reshape(-1)]
        expected = np.einsum("pnk,pk->pn", matrices, np.repeat(x, top, axis=0) if shared else x)
        for found in both(label, experts._expert_linear, isa, expected.shape, x, routes, *arrays):
            close(found, expected)


@pytest.mark.parametrize("whole", [True, False])
def test_routes_are_the_best_experts_and_their_shares(whole: bool):
    logits = normal(4, 7)
    logits[0, 2] = logits[0, 4] = 3  # a tie: the first one
    label = experts.RoutesLabel(experts=7, top=3, whole=whole)
    loops = prim_func(label, experts._routes, ((logits.shape, "float32"),)).without_attr(LABEL)
    found = run(loops, ISAS[-1], logits, empty(4, 6))[-1]
    order = np.argsort(-logits, axis=1, kind="stable")[:, :3]
    power = np.exp(logits.astype(np.float64))
    chosen = np.take_along_axis(power, order, 1)
    assert np.array_equal(found[:, :3], order)
    close(found[:, 3:], chosen / (chosen if whole else power).sum(1, keepdims=True))
