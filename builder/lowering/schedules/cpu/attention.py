"""Attention over a paged KV cache on the CPU, float32.

All three kernels are one computation on ROWS rows of queries against the keys of one head: the scores of every page of
keys (D multiply-adds on vectors of tokens, see cache.py for the turned pages), a softmax over the row in base 2, and
the values summed with its weights. Decode takes the query heads that share a key head as rows, prefill takes tokens.

Axes: M query tokens, A query heads, D features of a head. A row of scores is as long as the pages it covers.
Signatures are those that TVM's paged KV cache calls.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from llm_build.lowering.choices import choose
from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu import window
from llm_build.lowering.schedules.cpu.attention_inputs import Keys, Queries
from llm_build.lowering.schedules.cpu.cache import PAGE, key_base, pages_arg, value_base
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa, Scalar
from llm_build.lowering.schedules.ir import T
from llm_build.ops.kv_cache import CacheLayout, scale_of

ROWS = 4
ROTARY = (Scalar("rotary_mode", "int32"), Scalar("rope_scale", "float32"), Scalar("rope_theta", "float32"))


def _attend(
    isa: Isa, layout: CacheLayout, q: Buffer, queries: Queries, keys: Keys, out: Buffer, lse: Buffer, encoded: Expr
) -> None:
    """out = softmax(q k * scale) v for the rows; lse = log2 of the sum of 2^(score * log2 e). No token seen: 0 and a
    very small lse."""
    rows, width = len(queries.starts), layout.head_dim
    length = T.Bind(keys.pages * PAGE)
    scores = v.scratch(keys.most_pages * (PAGE * rows))
    unit = 1.0 / layout.soft_cap if layout.soft_cap else v.LOG2_E
    factor = T.Bind(scale_of(encoded, layout) * tirx.const(unit, "float32"))
    with v.loop(keys.pages) as page:
        _page_scores(isa, layout, q, queries, keys, page, scores, length, factor)
    sums = v.scratch(rows)
    for r in range(rows):
        top, weights = _softmax_row(isa, scores, T.Bind(length * r), length)
        total = T.Bind(T.max(weights, tirx.const(1e-37, "float32")))
        v.store(sums, r, tirx.const(1.0, "float32") / total)
        log = T.Bind(top + v.log2(total))
        with _guarded(queries.real[r]):
            v.store(lse, queries.places[r], log)
    _sum_values(isa, width, queries, keys, scores, length, sums, out)


def _guarded(condition: Expr | None) -> AbstractContextManager[None]:
    return nullcontext() if condition is None else v.when(condition)


def _page_scores(
    isa: Isa,
    layout: CacheLayout,
    q: Buffer,
    queries: Queries,
    keys: Keys,
    page: Expr,
    scores: Buffer,
    length: Expr,
    factor: Expr,
) -> None:
    """Scores of the rows against one page; tokens that a row does not see get MINUS_INFINITY."""
    lanes, rows = min(isa.lanes, PAGE), len(queries.starts)
    parts = PAGE // lanes
    acc = v.scratch(rows * PAGE)
    for place in range(rows * parts):
        v.store(acc, place * lanes, v.splat(0.0, lanes), lanes)
    base, place = T.Bind(keys.turned(page)), T.Bind(keys.place(page))
    with v.loop(layout.head_dim) as d:
        columns = [T.Bind(v.load(keys.keys, base + d * PAGE + part * lanes, lanes)) for part in range(parts)]
        for r in range(rows):
            value = T.Bind(v.load(q, queries.starts[r] + d))
            for part in range(parts):
                at = (r * parts + part) * lanes
                v.store(acc, at, v.load(acc, at, lanes) + v.splat(value, lanes) * columns[part], lanes)
    for r in range(rows):
        visible = window.visibility(queries, r, place, lanes)
        for part in range(parts):
            score = v.load(acc, (r * parts + part) * lanes, lanes) * v.splat(factor, lanes)
            if layout.soft_cap:
                score = v.tanh(score, lanes) * v.splat(layout.soft_cap * v.LOG2_E, lanes)
            masked = tirx.Select(visible(part * lanes), score, v.splat(v.MINUS_INFINITY, lanes))
            v.store(scores, length * r + page * PAGE + part * lanes, masked, lanes)


def _softmax_row(isa: Isa, scores: Buffer, start: Expr, length: Expr) -> tuple[Expr, Expr]:
    """Scores -> 2^(score - top), in place; returns (top, their sum). MINUS_INFINITY becomes 0."""
    lanes = min(isa.lanes, PAGE)
    steps = tirx.floordiv(length, lanes)
    running = v.scratch(lanes)
    v.store(running, 0, v.splat(v.MINUS_INFINITY, lanes), lanes)
    with v.loop(steps) as step:
        v.store(running, 0, T.max(v.load(running, 0, lanes), v.load(scores, start + step * lanes, lanes)), lanes)
    top = T.Bind(v.lane_max(v.load(running, 0, lanes), lanes))
    sums = v.scratch(lanes)
    v.store(sums, 0, v.splat(0.0, lanes), lanes)
    with v.loop(steps) as step:
        score = T.Bind(v.load(scores, start + step * lanes, lanes))
        power = v.exp2(score - v.splat(top, lanes), lanes)
        seen = score > v.splat(v.MINUS_INFINITY / 2, lanes)
        weight = T.Bind(tirx.Select(seen, power, v.splat(0.0, lanes)))
        v.store(scores, start + step * lanes, weight, lanes)
        v.store(sums, 0, v.load(sums, 0, lanes) + weight, lanes)
    return top, T.Bind(v.lane_sum(v.load(sums, 0, lanes), lanes))


def _sum_values(
    isa: Isa, width: int, queries: Queries, keys: Keys, scores: Buffer, length: Expr, sums: Buffer, out: Buffer
) -> None:
    """out[row] = sum over tokens of weight * value / sum of weights, a few vectors of features at a time."""
    rows, lanes = len(queries.starts), isa.widest_divisor(width)
    for first in range(0, width // lanes, 4):
        parts = range(first, min(first + 4, width // lanes))
        acc = v.scratch(rows * len(parts) * lanes)
        places = [(r, part, (r * len(parts) + part - first) * lanes) for r in range(rows) for part in parts]
        for _, _, at in places:
            v.store(acc, at, v.splat(0.0, lanes), lanes)
        with v.loop(keys.pages) as page:
            base = T.Bind(keys.value(page))
            with v.loop(T.min(keys.tokens - keys.place(page), tirx.const(PAGE, "int64"))) as token:
                at_token = T.Bind(base + token * keys.stride)
                values = {part: T.Bind(v.load(keys.values, at_token + part * lanes, lanes)) for part in parts}
                weights = [T.Bind(v.load(scores, length * r + page * PAGE + token)) for r in range(rows)]
                for r, part, at in places:
                    v.store(acc, at, v.load(acc, at, lanes) + v.splat(weights[r], lanes) * values[part], lanes)
        for r in range(rows):
            with _guarded(queries.real[r]):
                for part in parts:
                    mean = v.load(acc, (r * len(parts) + part - first) * lanes, lanes) * v.splat(v.load(sums, r), lanes)
                    v.store(out, queries.starts[r] + part * lanes, mean, lanes)


@dataclass(frozen=True, slots=True)
class _Paged:
    """The page table as the runtime passes it, for one sequence of the batch."""

    layout: CacheLayout
    pages: Buffer
    indptr: Buffer
    table: Buffer
    last: Buffer

    def keys(self, sequence: Expr, head: Expr) -> Keys:
        first = T.Bind(tirx.Cast("int64", v.load(self.indptr, sequence)))
        count = T.Bind(tirx.Cast("int64", v.load(self.indptr, sequence + 1)) - first)
        last = tirx.if_then_else(count > 0, v.load(self.last, sequence), 0)
        tokens = T.Bind(T.max(count - 1, tirx.const(0, "int64")) * PAGE + last)
        return Keys(
            keys=self.pages,
            values=self.pages,
            turned=lambda page: key_base(self.layout, v.load(self.table, first + page), head),
            value=lambda page: value_base(self.layout, v.load(self.table, first + page), head),
            stride=self.layout.head_dim,
            pages=count,
            tokens=tokens,
            most_pages=self.table.shape[0],
        )


def _table_args(sequences: Any) -> list[Arg]:
    return [
        Arg("page_indptr", (v.size("page_indptr_size"),), "int32", offset=True),
        Arg("page_table", (v.size("page_table_size"),), "int32", offset=True),
        Arg("last_page_len", (sequences,), "int32", offset=True),
    ]


def decode(layout: CacheLayout, isa: Isa) -> tirx.PrimFunc:
    """One query token per sequence; its keys are in the pages already."""
    width, heads, shared = layout.head_dim, layout.query_heads, layout.query_heads // layout.key_heads
    batch = v.size("batch")
    rows = min(ROWS, shared)
    blocks = -(-shared // rows)
    choose("one pass over the keys", "query heads that share a key head are taken together", heads=rows, page=PAGE)

    def body(q: Buffer, pages: Buffer, indptr: Buffer, table: Buffer, last: Buffer, k_start: Buffer, position: Buffer,
             out: Buffer, lse: Buffer, _mode: Expr, _scale: Expr, _theta: Expr, scale: Expr) -> None:  # fmt: skip
        paged = _Paged(layout, pages, indptr, table, last)

        def task(index: Expr) -> None:
            sequence, head = T.Bind(index // (layout.key_heads * blocks)), T.Bind(index // blocks % layout.key_heads)
            keys = paged.keys(sequence, head)
            first = T.Bind(head * shared + T.min(index % blocks * rows, shared - rows))
            places = [T.Bind(sequence * heads + first + r) for r in range(rows)]
            queries = Queries([place * width for place in places], places, [keys.tokens] * rows, [None] * rows)
            if layout.window:
                view = window.View(layout, scale, v.load(k_start, sequence))
                queries, keys = view.narrowed(queries, keys, [v.load(position, sequence)] * rows)
            _attend(isa, layout, q, queries, keys, out, lse, scale)

        tasks = batch * (layout.key_heads * blocks)
        size = paged.table.shape[0] * (PAGE * heads * width)
        v.if_else(size >= v.PARALLEL_MACS, lambda: _spread(tasks, task), lambda: _alone(tasks, task))

    result = (batch, heads, width)
    return v.kernel(
        [
            Arg("q", result),
            pages_arg(layout),
            *_table_args(batch),
            Arg("k_rope_offset", (batch,), "int32", offset=True),
            Arg("q_rope_position", (batch,), "int32", offset=True),
            Arg("out", result),
            Arg("lse", (batch, heads)),
            *ROTARY,
            Scalar("scale", "float32"),
        ],
        body,
    )


def _spread(tasks: Expr, task: Callable[[Expr], None]) -> None:
    with v.loop(tasks, parallel=True) as index:
        task(index)


def _alone(tasks: Expr, task: Callable[[Expr], None]) -> None:
    with v.loop(tasks) as index:
        task(index)


def _token_blocks(
    layout: CacheLayout, q_indptr: Buffer, sequence: Expr, head: Expr,
    block: Callable[[Queries, Expr, list[Expr]], None], seen: Callable[[Expr, Expr], Expr],
) -> None:  # fmt: skip
    """block(queries, tokens the last row sees, the rows' places among all query tokens) for ROWS query tokens of one
    head at a time; ``seen(token, tokens of the sequence)`` is how many keys a query token sees."""
    first = T.Bind(tirx.Cast("int64", v.load(q_indptr, sequence)))
    count = T.Bind(tirx.Cast("int64", v.load(q_indptr, sequence + 1)) - first)
    with v.loop(tirx.floordiv(count + (ROWS - 1), ROWS)) as step:
        tokens = [T.Bind(T.min(step * ROWS + r, count - 1)) for r in range(ROWS)]
        places = [T.Bind((first + token) * layout.query_heads + head) for token in tokens]
        visible = [T.Bind(seen(token, count)) for token in tokens]
        real = [step * ROWS + r < count for r in range(ROWS)]
        queries = Queries([place * layout.head_dim for place in places], places, visible, real)
        block(queries, visible[-1], [first + token for token in tokens])


def prefill_paged(layout: CacheLayout, isa: Isa) -> tirx.PrimFunc:
    """Query tokens against everything that the pages held before them; every row sees all of it."""
    batch, total = v.size("batch"), v.size("total")
    shared, heads = layout.query_heads // layout.key_heads, layout.query_heads

    def body(q: Buffer, q_indptr: Buffer, pages: Buffer, indptr: Buffer, table: Buffer, last: Buffer, k_start: Buffer,
             position: Buffer, out: Buffer, lse: Buffer, _causal: Expr, _mode: Expr, _scale: Expr, _theta: Expr,
             scale: Expr) -> None:  # fmt: skip
        paged = _Paged(layout, pages, indptr, table, last)
        with v.loop(batch * heads, parallel=True) as index:
            sequence, head = T.Bind(index // heads), T.Bind(index % heads)
            keys = paged.keys(sequence, T.Bind(tirx.floordiv(head, shared)))

            def block(queries: Queries, _last: Expr, rows: list[Expr]) -> None:
                some = keys
                if layout.window:
                    view = window.View(layout, scale, v.load(k_start, sequence))
                    queries, some = view.narrowed(queries, keys, [v.load(position, row) for row in rows])
                _attend(isa, layout, q, queries, some, out, lse, scale)

            _token_blocks(layout, q_indptr, sequence, head, block, lambda _token, _count: keys.tokens)

    result = (total, heads, layout.head_dim)
    return v.kernel(
        [
            Arg("q", result),
            Arg("q_indptr", (v.size("q_indptr_size"),), "int32", offset=True),
            pages_arg(layout),
            *_table_args(batch),
            Arg("k_rope_offset", (batch,), "int32", offset=True),
            Arg("q_rope_position", (total,), "int32", offset=True),
            Arg("out", result),
            Arg("lse", (total, heads)),
            Scalar("causal", "int32"),
            *ROTARY,
            Scalar("scale", "float32"),
        ],
        body,
    )


def prefill_ragged(layout: CacheLayout, isa: Isa) -> tirx.PrimFunc:
    """The new tokens of each sequence among themselves; causal: a token sees itself and those before it."""
    q_total, k_total, batch = v.size("q_total"), v.size("k_total"), v.size("batch")
    shared, heads, width = layout.query_heads // layout.key_heads, layout.query_heads, layout.head_dim

    def body(q: Buffer, q_indptr: Buffer, k: Buffer, value: Buffer, k_indptr: Buffer, position: Buffer, k_start: Buffer,
             out: Buffer, lse: Buffer, causal: Expr, _mode: Expr, _scale: Expr, _theta: Expr,
             scale: Expr) -> None:  # fmt: skip
        with v.loop(batch * heads, parallel=True) as index:
            sequence, head = T.Bind(index // heads), T.Bind(index % heads)
            all_keys = _turn(layout, k, value, k_indptr, sequence, T.Bind(tirx.floordiv(head, shared)), k_total)

            def seen(token: Expr, count: Expr) -> Expr:
                return tirx.if_then_else(causal > 0, all_keys.tokens - count + token + 1, all_keys.tokens)

            def block(queries: Queries, last: Expr, rows: list[Expr]) -> None:
                some = replace(all_keys, pages=T.Bind(tirx.floordiv(last + (PAGE - 1), PAGE)), tokens=last)
                if layout.window:
                    view = window.View(layout, scale, v.load(k_start, sequence))
                    queries, some = view.narrowed(queries, some, [v.load(position, row) for row in rows])
                _attend(isa, layout, q, queries, some, out, lse, scale)

            _token_blocks(layout, q_indptr, sequence, head, block, seen)

    result, source = (q_total, heads, width), (k_total, layout.key_heads, width)
    return v.kernel(
        [
            Arg("q", result),
            Arg("q_indptr", (v.size("q_indptr_size"),), "int32", offset=True),
            Arg("k", source),
            Arg("value", source),
            Arg("k_indptr", (v.size("k_indptr_size"),), "int32", offset=True),
            Arg("q_rope_position", (q_total,), "int32", offset=True),
            Arg("k_rope_offset", (batch,), "int32", offset=True),
            Arg("out", result),
            Arg("lse", (q_total, heads)),
            Scalar("causal", "int32"),
            *ROTARY,
            Scalar("scale", "float32"),
        ],
        body,
    )


def _turn(
    layout: CacheLayout, k: Buffer, value: Buffer, k_indptr: Buffer, sequence: Expr, head: Expr, k_total: Expr
) -> Keys:
    """The keys of one head of a sequence, turned into pages; zeros behind the last token."""
    width, row = layout.head_dim, layout.key_heads * layout.head_dim
    first = T.Bind(tirx.Cast("int64", v.load(k_indptr, sequence)))
    tokens = T.Bind(tirx.Cast("int64", v.load(k_indptr, sequence + 1)) - first)
    pages = T.Bind(tirx.floordiv(tokens + (PAGE - 1), PAGE))
    most_pages = tirx.floordiv(k_total + (PAGE - 1), PAGE)
    turned = v.scratch(most_pages * (PAGE * width))
    with v.loop(pages) as page, v.loop(PAGE) as inside:
        token = T.Bind(page * PAGE + inside)
        source = T.Bind((first + T.min(token, tokens - 1)) * row + head * width)
        with v.loop(width) as d:
            fresh = tirx.if_then_else(token < tokens, v.load(k, source + d), tirx.const(0.0, "float32"))
            v.store(turned, (page * width + d) * PAGE + inside, fresh)
    return Keys(
        keys=turned,
        values=value,
        turned=lambda page: page * (PAGE * width),
        value=lambda page: (first + page * PAGE) * row + head * width,
        stride=row,
        pages=pages,
        tokens=tokens,
        most_pages=most_pages,
    )
