"""y = x @ weight.T (+ bias) (+ residual) with bytes on both sides, four products a lane: AVX-512 VNNI or AVX-VNNI.

VPDPBUSD multiplies an unsigned byte with a signed one. Weights are made unsigned by turning their top bit, which adds
128 to each; 128 times the sum of the row of x is taken off again. All of it is exact in int32.

Axes: M rows, N outputs, K inputs, W words of four inputs, L lanes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from llm_build.lowering.choices import choose
from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.packed_weights import OUTPUTS_PER_DOT
from llm_build.lowering.schedules.cpu.vector import Buffer, Expr, Isa
from llm_build.lowering.schedules.ir import T
from llm_build.ops.rounded_inputs import RoundedLinearLabel

GEMV_MAX_ROWS = 3  # rows that are multiplied one by one
TILE_ROWS = 10  # rows of sums in registers
ROW_BLOCK = 480  # rows that one panel of the weight is kept for
MAX_PANELS_PER_TASK = 8  # of one task, at most
MIN_TASKS = 16  # tasks of a product, at least, if there are so many panels
TOP_BITS = 0x80808080


@dataclass(frozen=True, slots=True)
class Product:
    """A product of codes (M, W) and a weight (N, W), their scales beside them. ``epilogue``: what is added to it."""

    n: int
    words: int
    lanes: int
    codes: Buffer
    scales: Buffer
    weight: Buffer
    weight_scales: Buffer
    epilogue: Any  # linear.Epilogue
    y: Buffer
    rows: Expr


def multiply_codes(p: Product) -> None:
    """Few rows (see linear.py) one by one, many by panels."""
    choose("GEMV", f"up to {GEMV_MAX_ROWS} rows", outputs=OUTPUTS_PER_DOT, lanes=p.lanes)
    choose("panels", f"more than {GEMV_MAX_ROWS} rows", rows=TILE_ROWS, lanes=p.lanes)
    v.if_else(p.rows <= tirx.const(GEMV_MAX_ROWS, "int64"), lambda: _gemv(p), lambda: _gemm(p))


def lanes_of(label: RoundedLinearLabel, isa: Isa) -> int:
    """int32 lanes of the kernel for this label; 0: there is none."""
    lanes, words = isa.lanes, -(-label.weight.k // 4)
    while lanes >= 4 and (lanes > words or 2 * lanes > label.weight.n):
        lanes //= 2
    return lanes if isa.vnni and label.activation == "int8" and lanes >= 4 else 0


def _multiply_add(acc: Expr, unsigned: Expr, signed: Expr, lanes: int) -> Expr:
    """acc + the four products of each lane's bytes."""
    pair = [v.bits(value, "int8", 4 * lanes) for value in (unsigned, signed)]
    return T.call_llvm_pure_intrin(f"int32x{lanes}", f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", acc, *pair)


def _unsigned_bytes(words: Expr, lanes: int) -> Expr:
    """Signed bytes plus 128."""
    turned = words ^ v.splat(TOP_BITS, lanes, "uint32")
    return v.bits(turned, "int32", lanes)


def signed(words: Expr, lanes: int) -> Expr:
    return v.bits(words, "int32", lanes)


def _row_sums(p: Product) -> Buffer:
    """-128 times the sum of each row of codes."""
    sums, lanes = v.scratch(p.rows, "int32"), p.lanes
    ones = v.splat(0x01010101, lanes, "int32")
    with v.loop(p.rows) as row:
        acc = v.scratch(lanes, "int32")
        v.store(acc, 0, v.splat(0, lanes, "int32"), lanes)
        with v.loop(p.words // lanes) as step:
            words = signed(v.load(p.codes, row * p.words + step * lanes, lanes), lanes)
            v.store(acc, 0, _multiply_add(v.load(acc, 0, lanes), ones, words, lanes), lanes)
        if p.words % lanes:
            prepared = _tail(p, row)
            v.store(acc, 0, _multiply_add(v.load(acc, 0, lanes), ones, v.load(prepared, 0, lanes), lanes), lanes)
        v.store(sums, row, v.lane_sum(v.load(acc, 0, lanes), lanes) * tirx.const(-128, "int32"))
    return sums


def _tail(p: Product, row: Expr) -> Buffer:
    """The last vector of a row of codes, which starts early: 0 where the vectors before it have been."""
    prepared, first = v.scratch(p.lanes, "int32"), p.words - p.lanes
    with v.loop(p.lanes) as lane:
        word = v.bits(v.load(p.codes, row * p.words + first + lane), "int32", 1)
        fresh = lane >= p.lanes - p.words % p.lanes
        v.store(prepared, lane, tirx.Select(fresh, word, tirx.const(0, "int32")))
    return prepared


def _gemv(p: Product) -> None:
    """Dot products, OUTPUTS at a time; the last ones overlap the ones before, writing the same values."""
    lanes, outputs = p.lanes, OUTPUTS_PER_DOT
    sums = _row_sums(p)
    with v.loop(p.rows) as row:
        prepared = _tail(p, row) if p.words % lanes else None
        with v.loop(-(-p.n // outputs), parallel=p.n * p.words >= v.PARALLEL_MACS) as block:
            n = T.Bind(T.min(block * outputs, p.n - outputs))
            accs = [v.scratch(lanes, "int32") for _ in range(outputs)]
            for acc in accs:
                v.store(acc, 0, v.splat(0, lanes, "int32"), lanes)

            def add(x: Expr, start: Expr, n: Expr = n, accs: list[Buffer] = accs) -> None:
                for r, acc in enumerate(accs):
                    words = _unsigned_bytes(v.load(p.weight, (n + r) * p.words + start, lanes), lanes)
                    v.store(acc, 0, _multiply_add(v.load(acc, 0, lanes), words, x, lanes), lanes)

            with v.loop(p.words // lanes) as step:
                start = T.Bind(step * lanes)
                add(T.Bind(signed(v.load(p.codes, row * p.words + start, lanes), lanes)), start)
            if prepared is not None:
                add(T.Bind(v.load(prepared, 0, lanes)), p.words - lanes)
            for r, acc in enumerate(accs):
                dot = v.lane_sum(v.load(acc, 0, lanes), lanes) + v.load(sums, row)
                scaled = tirx.Cast("float32", dot) * v.load(p.scales, row) * v.load(p.weight_scales, n + r)
                v.store(p.y, row * p.n + n + r, p.epilogue.at(row, n + r, 1) + scaled)


def _gemm(p: Product) -> None:
    """Panels of 2 vectors of outputs, all inputs deep, for ROW_BLOCK rows at a time."""
    width = 2 * p.lanes
    panels = -(-p.n // width)
    together = max(1, min(MAX_PANELS_PER_TASK, panels // MIN_TASKS))
    sums = _row_sums(p)
    blocks = tirx.floordiv(p.rows + (ROW_BLOCK - 1), ROW_BLOCK)
    with v.loop(blocks) as block, v.loop(-(-panels // together), parallel=True) as task:
        low, high = T.Bind(block * ROW_BLOCK), T.Bind(T.min((block + 1) * ROW_BLOCK, p.rows))
        data = v.scratch(p.words * width, "int32")
        with v.loop(T.min(together, panels - task * together)) as place:
            n = T.Bind(T.min((task * together + place) * width, p.n - width))
            _transpose_panel(p, n, data)
            with v.loop(tirx.floordiv(high - low + (TILE_ROWS - 1), TILE_ROWS)) as tile:
                _multiply_tile(p, n, data, sums, T.Bind(low + tile * TILE_ROWS), high)


def _transpose_panel(p: Product, n: Expr, data: Buffer) -> None:
    """data[w, 0 .. 2 L] = word w of outputs n .. n + 2 L: squares are turned in registers, the rest is gathered."""
    lanes = p.lanes
    width, whole = 2 * lanes, p.words // lanes
    for part in (0, lanes):
        with v.loop(whole) as step:
            sources = [(n + part + r) * p.words + step * lanes for r in range(lanes)]
            rows = [T.Bind(_unsigned_bytes(v.load(p.weight, source, lanes), lanes)) for source in sources]
            for w, column in enumerate(v.transposed(rows)):
                v.store(data, (step * lanes + w) * width + part, column, lanes)
        for w in range(whole * lanes, p.words):
            column = v.gather(p.weight, (n + part) * p.words + w, p.words, lanes)
            v.store(data, w * width + part, _unsigned_bytes(column, lanes), lanes)


def _multiply_tile(p: Product, n: Expr, data: Buffer, sums: Buffer, row: Expr, end: Expr) -> None:
    """ROWS rows of x times the panel; rows past the end repeat the last one and are not stored."""
    lanes = p.lanes
    width = 2 * lanes
    real = [T.Bind(T.min(row + r, end - 1)) for r in range(TILE_ROWS)]
    accs = {(r, part): v.scratch(lanes, "int32") for r in range(TILE_ROWS) for part in (0, lanes)}
    for (r, _), acc in accs.items():
        v.store(acc, 0, v.splat(v.load(sums, real[r]), lanes), lanes)
    with v.loop(p.words) as w:
        columns = {part: T.Bind(v.load(data, w * width + part, lanes)) for part in (0, lanes)}
        values = [T.Bind(v.bits(v.load(p.codes, real[r] * p.words + w), "int32", 1)) for r in range(TILE_ROWS)]
        for (r, part), acc in accs.items():
            x = v.splat(values[r], lanes)
            v.store(acc, 0, _multiply_add(v.load(acc, 0, lanes), columns[part], x, lanes), lanes)
    for r in range(TILE_ROWS):
        with v.when(row + r < end):
            for part in (0, lanes):
                dot = v.cast(v.load(accs[r, part], 0, lanes), "float32", lanes)
                scaled = dot * v.splat(v.load(p.scales, real[r]), lanes) * v.load(p.weight_scales, n + part, lanes)
                v.store(p.y, real[r] * p.n + n + part, p.epilogue.at(real[r], n + part, lanes) + scaled, lanes)
