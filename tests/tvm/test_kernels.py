"""CPU kernels against numpy in float64, for each register width, on shapes that do not divide evenly."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import ir, tirx

from llm_build.lowering.backends import cpu as backend
from llm_build.lowering.kernel_modules import Schedules
from llm_build.lowering.schedules.cpu import attention, cache, linear, sampling
from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.vector import Arg, Isa
from llm_build.ops.embedding import EmbeddingLabel
from llm_build.ops.gates import SiluMulLabel
from llm_build.ops.kv_cache import CacheLayout, rope_frequencies
from llm_build.ops.linear import Linear, LinearLabel
from llm_build.ops.rows import LastRowLabel, TakeRowsLabel
from llm_build.ops.weights import StoredWeight
from llm_build.quant import layout, reference
from llm_build.targets import cpu

SCHEDULES = Schedules("cpu")
LEVELS = {16: "x86-64-v4", 8: "x86-64-v3", 4: "x86-64-v2"}
ISAS = [Isa(lanes, lanes > 4) for lanes in LEVELS]
RANDOM = np.random.default_rng(0)
LINEAR_CASES = [  # outputs, inputs, (bits, group) or stored dtype
    (37, 70, "float16"),
    (37, 70, "float32"),
    (64, 256, (4, 32)),
    (30, 90, (4, 32)),
    (41, 80, (3, 40)),
    (33, 128, (8, 32)),
    (33, 256, (4, 128)),
    (6, 33, (4, 32)),
    (33, 256, (8, 0, "e4m3", "NK", "float16")),
    (37, 90, (8, 0, "e5m2", "NK", "float16")),
    (70, 96, (4, 32, "group", "KN", "float16")),
    (37, 90, (3, 40, "group", "KN", "float32")),
    (37, 250, (4, 32, "group", "zeros", "float16")),
    (30, 90, (3, 40, "group", "zeros", "float32")),
    (33, 200, (4, 0, "group", "zeros", "float16")),
]


@pytest.fixture(params=ISAS, ids=lambda isa: f"{isa.lanes}-lanes")
def isa(request: pytest.FixtureRequest) -> Isa:
    if not cpu.implied_features(LEVELS[request.param.lanes]) <= cpu.host_features():
        pytest.skip(f"this CPU is not {LEVELS[request.param.lanes]}")
    return request.param


def run(kernel: tirx.PrimFunc, isa: Isa, *arrays: Any) -> list[np.ndarray]:
    """Call a kernel; the arrays as it leaves them."""
    passed = [tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else a for a in arrays]
    compiled(kernel, isa)(*passed)
    return [a.numpy() if hasattr(a, "numpy") else a for a in passed]


@lru_cache(maxsize=8)
def compiled(kernel: tirx.PrimFunc, isa: Isa) -> Any:
    """As a library has it; once, however often a test calls it."""
    level = LEVELS[isa.lanes]
    target = {"kind": "cpu", "triple": cpu.triple_of(level, None), "cpu": level, "features": []}
    machine = backend.machine_of(target)
    with machine.tvm, tvm.transform.PassContext(opt_level=3):
        named = kernel.with_attr("global_symbol", "kernel")
        return backend.compile_kernel(ir.GlobalVar("kernel"), named, machine)["kernel"]


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def close(found: np.ndarray, expected: np.ndarray, relative: float = 2e-6) -> None:
    assert np.abs(found - expected).max() <= relative * np.abs(expected).max()


def empty(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def linear_case(n: int, k: int, stored: Any) -> tuple[StoredWeight, list[np.ndarray], np.ndarray]:
    """(how the weight is stored, stored arrays, the weight they stand for)."""
    if isinstance(stored, str):
        weight = normal(n, k).astype(stored)
        return StoredWeight(n, k, "none", stored), [weight], weight.astype(np.float64)
    bits, group, *rest = stored
    kind, order, dtype = rest or ("group", "NK", "float16")
    zeros, order = order == "zeros", "KN" if order == "KN" else "NK"
    scheme = layout.Scheme("test", kind, bits, group, order, dtype, "uint32", True, True, zero_point=zeros)
    packed = reference.quantize(normal(n, k) + (0.3 if zeros else 0), scheme)
    if kind == "group" and not zeros:
        packed = with_every_value(*packed, bits)
    storage = Linear(n, k, scheme).storage
    arrays = [np.ascontiguousarray(a.T) if order == "KN" else a for a in packed]
    return storage, arrays, reference.dequantize(*packed[:2], k, scheme, *packed[2:]).astype(np.float64)


def with_every_value(words: np.ndarray, scales: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Half of the scales turned negative, and the first word of a row full of the value that plain rounding leaves
    free: mse, awq and gptq use both."""
    words, signs = words.copy(), np.where(RANDOM.random(scales.shape) < 0.5, -1, 1)
    words[:, 0] = (1 << 32 // bits * bits) - 1
    return words, (scales * signs).astype(scales.dtype)


@pytest.mark.parametrize(("n", "k", "stored"), LINEAR_CASES)
def test_linear(isa: Isa, n: int, k: int, stored: Any):
    storage, arrays, weight = linear_case(n, k, stored)
    bias = normal(n).astype(storage.dtype)
    kernel = linear.linear(LinearLabel(storage, bias=True, residual=True), isa)
    assert kernel is not None
    for rows in (1, linear.GEMV_MAX_ROWS, linear.GEMV_MAX_ROWS + 1, 13):
        x, residual = normal(rows, k), normal(rows, n)
        *_, found = run(kernel, isa, x, residual, *arrays, bias, empty(rows, n))
        close(found, x @ weight.T + bias + residual)


@pytest.mark.parametrize(
    "stored",
    [
        "float32",
        "float16",
        "bfloat16",
        (4, 32),
        (4, 32, "group", "KN", "float16"),
        (4, 32, "group", "zeros", "float16"),
    ],
)
def test_linear_beside_an_outlier(isa: Isa, stored: Any):
    """A residual stream of 24,350, as SmolLM2 has at its first position and 37 elsewhere: what is added to it is summed
    by itself, and in parts, so that the result is off by the last bit of the stream and of the sum."""
    n, k = 70, 1536
    storage, arrays, weight = linear_case(n, k, stored)
    kernel = linear.linear(LinearLabel(storage, bias=False, residual=True), isa)
    for rows in (1, linear.GEMV_MAX_ROWS + 1, 13):
        x, residual = normal(rows, k), 37 * normal(rows, n)
        residual[0] = 24_350
        *_, found = run(kernel, isa, x, residual, *arrays, empty(rows, n))
        product = x.astype(np.float64) @ weight.T
        expected = product + residual
        allowed = 2.0**-24 * np.abs(expected) + 2e-6 * np.abs(product).max()
        assert (np.abs(found - expected) <= allowed).all()


def test_linear_without_a_kernel_keeps_plain_loops():
    storage, _, _ = linear_case(3, 40, "float16")
    assert linear.linear(LinearLabel(storage, bias=False, residual=False), ISAS[0]) is None


@pytest.mark.parametrize(("n", "k", "stored"), [LINEAR_CASES[i] for i in (0, 3, 4, 8, 9, -3)])
def test_embedding(isa: Isa, n: int, k: int, stored: Any):
    storage, arrays, weight = linear_case(n, k, stored)
    ids = np.array([0, n - 1, 5], np.int32)
    *_, found = run(SCHEDULES["embedding"](EmbeddingLabel(storage), isa), isa, ids, *arrays, empty(3, k))
    assert np.array_equal(found, weight[ids].astype(np.float32))


@pytest.mark.parametrize("width", [256, 50])
def test_gate(isa: Isa, width: int):
    gate_up = 20 * normal(5, 2 * width)
    *_, found = run(SCHEDULES["silu_mul"](SiluMulLabel(width), isa), isa, gate_up, empty(5, width))
    gate, up = gate_up[:, :width].astype(np.float64), gate_up[:, width:]
    close(found, gate / (1 + np.exp(-gate)) * up)


def test_row_lookups(isa: Isa):
    x, which = normal(7, 21), np.array([6, 0, 6], np.int32)
    assert np.array_equal(run(SCHEDULES["last_row"](LastRowLabel(21), isa), isa, x, empty(1, 21))[1], x[-1:])
    assert np.array_equal(run(SCHEDULES["take_rows"](TakeRowsLabel(21), isa), isa, x, which, empty(3, 21))[2], x[which])


def elementwise(isa: Isa, function: Any, x: np.ndarray) -> np.ndarray:
    """Apply a vector function to x, whose length must be a multiple of the lanes."""

    def body(given: Any, out: Any) -> None:
        with v.loop(x.size // isa.lanes) as step:
            v.store(out, step * isa.lanes, function(v.load(given, step * isa.lanes, isa.lanes)), isa.lanes)

    return run(v.kernel([Arg("x", (x.size,)), Arg("y", (x.size,))], body), isa, x, empty(x.size))[1]


def test_elementary_functions(isa: Isa):
    x = np.linspace(-126, 127, 1 << 14).astype(np.float32)
    found = elementwise(isa, lambda value: v.exp2(value, isa.lanes), x)
    assert np.abs(found / np.exp2(x.astype(np.float64)) - 1).max() < 2e-7
    assert elementwise(isa, lambda value: v.exp2(value, isa.lanes), np.full(16, -1e30, np.float32)).max() < 2e-38
    turns = np.concatenate([np.linspace(-10, 10, 1 << 12), np.linspace(0, 131072, 1 << 12)]).astype(np.float32)
    for index, exact in enumerate((np.sin, np.cos)):
        found = elementwise(isa, lambda value, i=index: v.sin_cos(value, isa.lanes)[i], turns)
        assert np.abs(found - exact(turns.astype(np.float64))).max() < 1e-7
    one = Isa(1, isa.f16c)
    positive = np.concatenate([np.geomspace(1e-37, 1e37, 4000), np.linspace(0.9, 1.1, 96)]).astype(np.float32)
    target_isa_log = elementwise_scalar(isa, one, positive)
    assert np.abs(target_isa_log - np.log2(positive.astype(np.float64))).max() < 1e-5


def elementwise_scalar(isa: Isa, _one: Isa, x: np.ndarray) -> np.ndarray:
    def body(given: Any, out: Any) -> None:
        with v.loop(x.size) as step:
            v.store(out, step, v.log2(v.load(given, step)))

    return run(v.kernel([Arg("x", (x.size,)), Arg("y", (x.size,))], body), isa, x, empty(x.size))[1]


def test_every_finite_float16_without_hardware_conversion(isa: Isa):
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    half = half[np.isfinite(half)]
    soft = Isa(isa.lanes, f16c=False)

    def body(given: Any, out: Any) -> None:
        with v.loop(half.size // isa.lanes) as step:
            raw = v.load(given, step * isa.lanes, isa.lanes)
            v.store(out, step * isa.lanes, v.to_float32(raw, "float16", isa.lanes, soft), isa.lanes)

    kernel = v.kernel([Arg("x", (half.size,), "float16"), Arg("y", (half.size,))], body)
    assert np.array_equal(run(kernel, isa, half, empty(half.size))[1], half.astype(np.float32))


LAYOUT = CacheLayout(2, 6, 2, 20, 20, rope_frequencies(1e4, 20))


def softmax_attention(q: np.ndarray, k: np.ndarray, value: np.ndarray, seen: int) -> tuple[np.ndarray, float]:
    """One query row over the first ``seen`` keys: the mean value, and log2 of the sum of exponentials."""
    scores = (k[:seen].astype(np.float64) @ q) * 0.3
    weights = np.exp(scores)
    return weights @ value[:seen] / weights.sum(), float(np.log2(weights.sum()))


def filled_pages(
    lengths: list[int], isa: Isa
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray, list[np.ndarray]]:
    """Random keys and values of several sequences in shuffled pages: (keys, values, pages, page table arrays)."""
    counts = [-(-n // cache.PAGE) for n in lengths]
    table = RANDOM.permutation(sum(counts) + 2)[: sum(counts)].astype(np.int32)
    indptr = np.cumsum([0, *counts]).astype(np.int32)
    pages = empty(sum(counts) + 2, 2, LAYOUT.key_heads, cache.PAGE, LAYOUT.head_dim)
    keys = [normal(n, LAYOUT.key_heads, LAYOUT.head_dim) for n in lengths]
    values = [normal(n, LAYOUT.key_heads, LAYOUT.head_dim) for n in lengths]
    slots = [
        table[indptr[i] + t // cache.PAGE] * cache.PAGE + t % cache.PAGE
        for i, n in enumerate(lengths)
        for t in range(n)
    ]
    slots_array = np.array(slots, np.int32)
    pages, *_ = run(cache.append(LAYOUT, isa), isa, pages, np.concatenate(keys), np.concatenate(values), slots_array)
    last = np.array([(n - 1) % cache.PAGE + 1 if n else 0 for n in lengths], np.int32)
    return keys, values, pages, [indptr, table, last]


def check_rows(
    found: np.ndarray, lse: np.ndarray, q: np.ndarray, rows: list[tuple[int, int]], keys: Any, values: Any
) -> None:
    """rows[i] = (sequence of row i, keys that it sees)."""
    for row, (sequence, seen) in enumerate(rows):
        for head in range(LAYOUT.query_heads):
            shared = head * LAYOUT.key_heads // LAYOUT.query_heads
            mean, log = softmax_attention(q[row, head], keys[sequence][:, shared], values[sequence][:, shared], seen)
            assert np.abs(found[row, head] - mean).max() < 2e-6
            assert abs(lse[row, head] - log) < 5e-6


def test_decode_attention(isa: Isa):
    lengths = [1, 16, 45]
    keys, values, pages, table = filled_pages(lengths, isa)
    q, spare = normal(3, LAYOUT.query_heads, LAYOUT.head_dim), np.zeros(3, np.int32)
    out = run(
        attention.decode(LAYOUT, isa), isa, q, pages, *table, spare, spare, np.full_like(q, np.nan),
        empty(3, LAYOUT.query_heads), 0, 1.0, 1e4, 0.3,
    )  # fmt: skip
    check_rows(out[7], out[8], q, list(enumerate(lengths)), keys, values)


def test_prefill_attention_over_pages_and_merge(isa: Isa):
    """New tokens against the cache (one sequence has none there), among themselves, and both merged."""
    past, new = [37, 0, 16], [5, 9, 1]
    keys, values, pages, table = filled_pages(past, isa)
    total = sum(new)
    q, spare = normal(total, LAYOUT.query_heads, LAYOUT.head_dim), np.zeros(3, np.int32)
    fresh = [normal(total, LAYOUT.key_heads, LAYOUT.head_dim) for _ in range(2)]
    indptr, position = np.cumsum([0, *new]).astype(np.int32), np.zeros(total, np.int32)
    blank = (np.full_like(q, np.nan), empty(total, LAYOUT.query_heads))
    cross = run(
        attention.prefill_paged(LAYOUT, isa),
        isa,
        q,
        indptr,
        pages,
        *table,
        spare,
        position,
        *blank,
        0,
        0,
        1.0,
        1e4,
        0.3,
    )[8:10]
    own = run(
        attention.prefill_ragged(LAYOUT, isa),
        isa,
        q,
        indptr,
        *fresh,
        indptr,
        position,
        spare,
        *blank,
        1,
        0,
        1.0,
        1e4,
        0.3,
    )[7:9]
    merged = run(cache.merge(LAYOUT, isa), isa, *own, *cross)[:2]
    rows = [(sequence, token) for sequence, count in enumerate(new) for token in range(count)]
    fresh_keys, fresh_values = (np.split(a, indptr[1:-1]) for a in fresh)
    check_rows(*own, q, [(s, t + 1) for s, t in rows], fresh_keys, fresh_values)
    assert np.array_equal(cross[0][5:14], np.zeros_like(cross[0][5:14]))
    all_keys = [np.concatenate(pair) for pair in zip(keys, fresh_keys, strict=True)]
    all_values = [np.concatenate(pair) for pair in zip(values, fresh_values, strict=True)]
    check_rows(*merged, q, [(s, past[s] + t + 1) for s, t in rows], all_keys, all_values)


def test_rotary_embedding(isa: Isa):
    heads, positions = LAYOUT.query_heads + 2 * LAYOUT.key_heads, np.array([0, 1, 1000], np.int32)
    qkv = normal(3, heads, LAYOUT.head_dim)
    shapes = [(3, n, LAYOUT.head_dim) for n in (LAYOUT.query_heads, LAYOUT.key_heads, LAYOUT.key_heads)]
    found = run(cache.split_rotary(LAYOUT, isa), isa, qkv, positions, *(empty(*s) for s in shapes), 1)[2:5]
    angle = (positions[:, None].astype(np.float32) * np.array(LAYOUT.inv_freq, np.float32)).astype(np.float64)[:, None]
    low, high = np.split(qkv[:, : LAYOUT.query_heads + LAYOUT.key_heads].astype(np.float64), 2, axis=2)
    turned = np.concatenate(
        [low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)], axis=2
    )
    close(np.concatenate(found[:2], axis=1), turned)
    assert np.array_equal(found[2], qkv[:, -LAYOUT.key_heads :])


def test_pages_are_moved_whole(isa: Isa):
    keys, values, pages, (_, table, _) = filled_pages([40], isa)
    free = next(page for page in range(5) if page not in table)
    pages, *_ = run(cache.copy_single_page(LAYOUT, isa), isa, pages, int(table[1]), free, 7)
    slots = np.array([free * cache.PAGE + t for t in range(7)], np.int32)
    whole = (LAYOUT.layers, 7, LAYOUT.key_heads, LAYOUT.head_dim)
    *_, k, value, _ = run(cache.debug_get(LAYOUT, isa), isa, pages, slots, empty(*whole), empty(*whole), 1)
    assert np.array_equal(k[1], keys[0][16:23])
    assert np.array_equal(value[1], values[0][16:23])
    moves = np.array([[slots[2], slots[5]], [slots[0], slots[1]]], np.int32)
    pages, *_ = run(cache.compact(LAYOUT, isa), isa, pages, np.array([0, 2], np.int32), moves, 1)
    *_, k, _, _ = run(cache.debug_get(LAYOUT, isa), isa, pages, slots, empty(*whole), empty(*whole), 0)
    assert np.array_equal(k[0][:2], keys[0][[18, 21]])


def test_softmax_and_sort(isa: Isa):
    logits, temperature = 4 * normal(3, 1, 203), np.array([1, 0.5, 0], np.float32)
    *_, probs = run(sampling.softmax_with_temperature(203, isa), isa, logits, temperature, empty(3, 1, 203))
    scaled = logits[:, 0].astype(np.float64) / np.maximum(temperature, 1e-5)[:, None]
    expected = np.exp(scaled - scaled.max(1, keepdims=True))
    close(probs[:, 0], expected / expected.sum(1, keepdims=True))
    probs = np.round(probs[:, 0], 3).astype(np.float32)  # so that many are equal
    _, values, tokens = run(sampling.argsort(isa), isa, probs, empty(3, 203), np.zeros((3, 203), np.int32))
    assert np.array_equal(tokens, np.argsort(-probs, axis=1, kind="stable"))
    assert np.array_equal(values, np.take_along_axis(probs, tokens, 1))


def test_top_p_samples(isa: Isa):
    probs = np.array([[0.5, 0.25, 0.125, 0.125], [0.4, 0.3, 0.2, 0.1]], np.float32)
    tokens = np.array([[7, 8, 9, 3], [1, 2, 5, 4]], np.int32)
    which, top_p = np.array([0, 0, 0, 1, 1], np.int32), np.array([0.75, 1.0], np.float32)
    uniform = np.array([0.0, 0.6, 0.99, 0.69, 0.95], np.float32)
    *_, found = run(sampling.sample_with_top_p(isa), isa, probs, tokens, uniform, which, top_p, np.zeros(5, np.int32))
    assert found.tolist() == [7, 7, 8, 2, 4]
    places = np.array([0, 6], np.int32)
    by_token = np.zeros((2, 10), np.float32)
    np.put_along_axis(by_token, tokens.astype(np.int64), probs, 1)
    sorted_tokens = np.pad(tokens, ((0, 0), (0, 6)))
    out = run(
        sampling.take_probs(isa), isa, by_token, sorted_tokens, which[:2], found[:2], places, empty(2), empty(2),
        np.zeros(2, np.int32),
    )  # fmt: skip
    assert out[5].tolist() == [0.5, 0.5]
    assert out[7].tolist() == [7, 0]


def test_logits_are_changed_in_place(isa: Isa):
    logits = normal(2, 40)
    rows, tokens = np.array([1, 0], np.int32), np.array([39, 3], np.int32)
    biased, *_ = run(sampling.apply_logit_bias(isa), isa, logits, rows, tokens, np.array([2, -1], np.float32))
    expected = logits.copy()
    expected[1, 39] += 2
    expected[0, 3] -= 1
    assert np.array_equal(biased, expected)
    penalties = np.array([[0.25, 0.5, 2]], np.float32)
    row, none, three = np.array([1], np.int32), np.zeros(1, np.int32), np.array([3], np.int32)
    penalized, *_ = run(sampling.apply_penalty(isa), isa, biased, row, none, tokens[:1], three, penalties)
    value = expected[1, 39] - (0.25 + 3 * 0.5)
    expected[1, 39] = value * 2 if value < 0 else value / 2
    close(penalized, expected)
    masked, *_ = run(sampling.apply_bitmask(isa), isa, penalized, row, np.array([[0, 0], [-2, 1]], np.int32))
    allowed = [t != 0 and t <= 32 for t in range(40)]
    assert np.array_equal(masked[1] > -1e38, allowed)
    assert np.array_equal(masked[0], penalized[0])
