"""What moves keys and values on the CPU: rotary embedding, appending to pages, copying pages, merging two results.

A page of one layer is (2, key heads, PAGE, D) to the runtime. Inside, keys are stored turned, (D, PAGE), so that the
scores of a page are PAGE lanes wide without any sum across lanes; values are (PAGE, D).
Axes: M rows (tokens), A heads, D features of a head, P pages.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa, Scalar
from llm_build.lowering.schedules.ir import T
from llm_build.ops.kv_cache import CacheLayout

PAGE = 16  # tokens
FREQUENCIES_ARE_PASSED = False  # they are constants of split_rotary


def pages_arg(layout: CacheLayout) -> Arg:
    return Arg("pages", (v.size("num_pages"), 2, layout.key_heads, PAGE, layout.head_dim))


def key_base(layout: CacheLayout, page: Expr, head: Expr) -> Expr:
    """Where the turned keys (D, PAGE) of one head of a page start."""
    return (tirx.Cast("int64", page) * (2 * layout.key_heads) + head) * (PAGE * layout.head_dim)


def value_base(layout: CacheLayout, page: Expr, head: Expr) -> Expr:
    """Where the values (PAGE, D) of one head of a page start."""
    return key_base(layout, page, layout.key_heads + head)


def split_rotary(layout: CacheLayout, isa: Isa) -> tirx.PrimFunc:
    """Fused q, k, v -> three tensors, q and k rotated to their positions (halves paired, as transformers does)."""
    queries, keys, width, rows = layout.query_heads, layout.key_heads, layout.head_dim, v.size("rows")
    half, heads = layout.rotary_dim // 2, layout.query_heads + 2 * layout.key_heads

    def body(qkv: Buffer, positions: Buffer, q: Buffer, k: Buffer, value: Buffer, apply_rope: Expr) -> None:
        def one(row: Expr) -> None:
            sine, cosine = v.scratch(max(half, 1)), v.scratch(max(half, 1))
            angle = T.Bind(tirx.Cast("float32", tirx.if_then_else(apply_rope > 0, v.load(positions, row), 0)))
            if half:
                angles(layout, isa, angle, sine, cosine)
            for out, first, count in ((q, 0, queries), (k, queries, keys)):
                with v.loop(count) as head:
                    source, target = (row * heads + first + head) * width, (row * count + head) * width
                    rotate(layout, isa, qkv, source, out, target, sine, cosine)
            copy(qkv, (row * heads + queries + keys) * width, value, row * (keys * width), keys * width, isa)

        v.for_rows(rows, heads * width * 4, one)

    return v.kernel(
        [
            Arg("qkv", (rows, heads, width)),
            Arg("positions", (rows,), "int32", offset=True),
            Arg("q", (rows, queries, width)),
            Arg("k", (rows, keys, width)),
            Arg("value", (rows, keys, width)),
            Scalar("apply_rope", "int64"),
        ],
        body,
    )


def angles(layout: CacheLayout, isa: Isa, position: Expr, sine: Buffer, cosine: Buffer) -> None:
    """sin and cos of position * inv_freq, scaled; the frequencies are constants of the library."""
    half = layout.rotary_dim // 2
    lanes = isa.widest_divisor(half)
    frequency = v.scratch(half)
    for index, value in enumerate(layout.inv_freq):
        v.store(frequency, index, tirx.const(value, "float32"))
    with v.loop(half // lanes) as step:
        turned = T.Bind(v.load(frequency, step * lanes, lanes) * v.splat(position, lanes))
        for table, value in zip((sine, cosine), v.sin_cos(turned, lanes), strict=True):
            scaled = value if layout.rotary_scale == 1.0 else value * v.splat(layout.rotary_scale, lanes)
            v.store(table, step * lanes, scaled, lanes)


def rotate(
    layout: CacheLayout, isa: Isa, x: Buffer, source: Expr, y: Buffer, target: Expr, sine: Buffer, cosine: Buffer
) -> None:
    half = layout.rotary_dim // 2
    lanes = isa.widest_divisor(half)
    with v.loop(half // lanes) as step:
        at = step * lanes
        low, high = (T.Bind(v.load(x, source + at + shift, lanes)) for shift in (0, half))
        sin, cos = (T.Bind(v.load(table, at, lanes)) for table in (sine, cosine))
        v.store(y, target + at, low * cos - high * sin, lanes)
        v.store(y, target + at + half, high * cos + low * sin, lanes)
    rest = layout.head_dim - layout.rotary_dim
    if rest:
        copy(x, source + layout.rotary_dim, y, target + layout.rotary_dim, rest, isa)


def copy(x: Buffer, source: Expr, y: Buffer, target: Expr, count: int, isa: Isa) -> None:
    v.for_vectors(count, isa.lanes, lambda at, lanes: v.store(y, target + at, v.load(x, source + at, lanes), lanes))


def append(layout: CacheLayout, isa: Isa) -> tirx.PrimFunc:
    """New keys and values into their slots; position -1 is skipped."""
    keys, width, rows = layout.key_heads, layout.head_dim, v.size("rows")

    def body(pages: Buffer, k: Buffer, value: Buffer, slots: Buffer) -> None:
        with v.loop(rows) as row:
            slot = T.Bind(v.load(slots, row))
            with v.when(slot != -1), v.loop(keys) as head:
                page, inside = T.Bind(tirx.floordiv(slot, PAGE)), T.Bind(tirx.floormod(slot, PAGE))
                key, source = T.Bind(key_base(layout, page, head)), T.Bind((row * keys + head) * width)
                with v.loop(width) as d:
                    v.store(pages, key + d * PAGE + inside, v.load(k, source + d))
                copy(value, source, pages, value_base(layout, page, head) + inside * width, width, isa)

    return v.kernel(
        [
            pages_arg(layout),
            Arg("k", (rows, keys, width)),
            Arg("value", (rows, keys, width)),
            Arg("slots", (rows,), "int32", offset=True),
        ],
        body,
    )


def merge(layout: CacheLayout, isa: Isa) -> tirx.PrimFunc:
    """Two attention results over disjoint keys into the first: weights 2^lse, as in a softmax over both."""
    heads, width, rows = layout.query_heads, layout.head_dim, v.size("rows")
    lanes = isa.widest_divisor(width)

    def body(out: Buffer, lse: Buffer, other: Buffer, other_lse: Buffer) -> None:
        def one(row: Expr) -> None:
            with v.loop(heads) as head:
                at = T.Bind(row * heads + head)
                here, there = T.Bind(v.load(lse, at)), T.Bind(v.load(other_lse, at))
                top = T.Bind(T.max(here, there))
                weight, other_weight = T.Bind(v.exp2(here - top, 1)), T.Bind(v.exp2(there - top, 1))
                both = T.Bind(weight + other_weight)
                v.store(lse, at, top + v.log2(both))
                with v.loop(width // lanes) as step:
                    place = T.Bind(at * width + step * lanes)
                    mine = v.load(out, place, lanes) * v.splat(weight / both, lanes)
                    v.store(out, place, mine + v.load(other, place, lanes) * v.splat(other_weight / both, lanes), lanes)

        v.for_rows(rows, heads * width * 2, one)

    sums, logs = (rows, heads, width), (rows, heads)
    return v.kernel([Arg("out", sums), Arg("lse", logs), Arg("other", sums), Arg("other_lse", logs)], body)


def copy_single_page(layout: CacheLayout, isa: Isa) -> tirx.PrimFunc:
    """The first ``length`` tokens of one page into another."""

    def body(pages: Buffer, source: Expr, target: Expr, length: Expr) -> None:
        with v.loop(layout.key_heads) as head, v.loop(length) as token:
            _move_token(layout, pages, (source, token), (target, token), head)

    return v.kernel([pages_arg(layout), *(Scalar(n, "int64") for n in ("source", "target", "length"))], body)


def compact(layout: CacheLayout, isa: Isa) -> tirx.PrimFunc:
    """Tokens moved in the cache: for sequence b, entries indptr[b] .. indptr[b + 1] of (from, to) slots, in order."""
    entries, moves = v.size("entries"), v.size("moves")

    def body(pages: Buffer, indptr: Buffer, slots: Buffer, batch: Expr) -> None:
        with v.loop(layout.key_heads) as head, v.loop(batch) as b:
            first = T.Bind(v.load(indptr, b))
            with v.loop(v.load(indptr, b + 1) - first) as step:
                source = T.Bind(tirx.Cast("int64", v.load(slots, tirx.Cast("int64", first + step))))
                target = T.Bind(tirx.Cast("int64", v.load(slots, moves + tirx.Cast("int64", first + step))))
                ends = [(tirx.floordiv(slot, PAGE), tirx.floormod(slot, PAGE)) for slot in (source, target)]
                _move_token(layout, pages, ends[0], ends[1], head)

    return v.kernel(
        [
            pages_arg(layout),
            Arg("indptr", (entries,), "int32", offset=True),
            Arg("slots", (2, moves), "int32", offset=True),
            Scalar("batch", "int32"),
        ],
        body,
    )


def _move_token(layout: CacheLayout, pages: Buffer, source: Any, target: Any, head: Expr) -> None:
    """Key and value of one token of one head, from (page, token) to (page, token)."""
    width = layout.head_dim
    with v.loop(width) as d:
        for base, token_stride, feature_stride in ((key_base, 1, PAGE), (value_base, width, 1)):
            places = [
                base(layout, page, head) + token * token_stride + d * feature_stride for page, token in (target, source)
            ]
            v.store(pages, places[0], v.load(pages, places[1]))


def debug_get(layout: CacheLayout, isa: Isa) -> tirx.PrimFunc:
    """Keys and values of the given slots of one layer, as (layers, tokens, heads, D)."""
    heads, width, tokens = layout.key_heads, layout.head_dim, v.size("tokens")

    def body(pages: Buffer, slots: Buffer, k: Buffer, value: Buffer, layer: Expr) -> None:
        with v.loop(tokens) as token, v.loop(heads) as head, v.loop(width) as d:
            slot = T.Bind(v.load(slots, token))
            page, inside = tirx.floordiv(slot, PAGE), tirx.floormod(slot, PAGE)
            at = T.Bind(((layer * tokens + token) * heads + head) * width + d)
            v.store(k, at, v.load(pages, key_base(layout, page, head) + d * PAGE + inside))
            v.store(value, at, v.load(pages, value_base(layout, page, head) + inside * width + d))

    whole = (layout.layers, tokens, heads, width)
    return v.kernel(
        [
            pages_arg(layout),
            Arg("slots", (tokens,), "int32", offset=True),
            Arg("k", whole),
            Arg("value", whole),
            Scalar("layer", "int64"),
        ],
        body,
    )
