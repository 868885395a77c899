"""Attention of many query tokens on a GPU, float32: over the pages, and among the new tokens themselves.

Where a GPU has products of 16-bit numbers for it, flash_attention.py takes its place.

A block takes some query tokens of one head and goes through the keys, KEYS at a time, with a running softmax (Dao et
al. 2022, arXiv:2205.14135): a thread has one row and one key of the scores, and then some features of the row.

Axes: M query tokens, A query heads, D features of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits, Scalar
from llm_build.lowering.schedules.gpu.cache import PAGE, key_base, pages_arg, value_base
from llm_build.lowering.schedules.gpu.flash_attention import flash_paged, flash_ragged, flash_tile_of
from llm_build.lowering.schedules.gpu.paged import ROTARY, Paged, Scores, table_args
from llm_build.lowering.schedules.ir import T
from llm_build.ops.kv_cache import CacheLayout

KEYS_PER_STEP = 16  # of one step; a page


@dataclass(frozen=True, slots=True)
class _Tile:
    """Query tokens ``first`` .. of one head, ``rows`` at a time, ``count`` of them in the sequence, which begins at
    ``begin`` of all query tokens."""

    sequence: Expr
    head: Expr
    begin: Expr
    count: Expr
    first: Expr
    rows: int

    def token(self, m: Expr) -> Expr:
        """Query token of row m; past the end the last one."""
        return T.min(self.first + m, self.count - 1)


@dataclass(frozen=True, slots=True)
class _Keys:
    """Keys and values of one head, KEYS tokens at a time: ``key(tile, c, d)``, ``value(tile, c, d)``; the keys lie
    ``turned`` or not; ``tokens`` in all; ``seen(token, key)``: whether a query token sees a key, but for windows."""

    turned: bool
    key: Callable[[Expr, Expr, Expr], Expr]
    value: Callable[[Expr, Expr, Expr], Expr]
    tokens: Expr
    seen: Callable[[Expr, Expr], Expr]
    start: Expr
    end: Callable[[_Tile], Expr]  # tokens that any row of a tile sees


def _rows_of(layout: CacheLayout, traits: GpuTraits) -> int:
    """Query tokens of a block: as many as its threads and its shared memory have room for."""
    rows = traits.threads // KEYS_PER_STEP
    while (
        4 * (rows * (layout.head_dim + 1) + (KEYS_PER_STEP + 1) * layout.head_dim + 2 * rows * (KEYS_PER_STEP + 1))
        > traits.shared_bytes
    ):
        rows //= 2
    return rows


def _prefill(
    layout: CacheLayout, traits: GpuTraits, q: Buffer, q_indptr: Buffer, position: Buffer, batch: Expr, scores: Scores,
    keys_of: Callable[[Expr, Expr, Expr], _Keys], out: Buffer, lse: Buffer,
) -> None:  # fmt: skip
    """All tiles of query tokens; ``keys_of(sequence, key head, query tokens of the sequence)``."""
    heads, rows = layout.query_heads, _rows_of(layout, traits)
    shared = heads // layout.key_heads
    total = b.div(q.shape[0], heads * layout.head_dim)
    with b.launch(rows * KEYS_PER_STEP, b.ceil_div(total, rows), batch * heads) as (block, pair, thread):
        sequence, head = T.Bind(b.div(pair, heads)), T.Bind(b.mod(pair, heads))
        begin = T.Bind(b.load(q_indptr, sequence))
        count = T.Bind(b.load(q_indptr, sequence + 1) - begin)
        with b.when(block * rows < count):
            tile = _Tile(sequence, head, begin, count, T.Bind(block * rows), rows)
            keys = keys_of(sequence, T.Bind(b.div(head, shared)), count)
            _attend(layout, q, position, scores, tile, keys, out, lse, thread)


@dataclass(frozen=True, slots=True)
class _TileState:
    """What a block of prefill has at hand: shared memory (lines of ``line`` values, for the banks' sake) and, for each
    thread, its row, its place among the KEYS keys of a step, sums of features, and [top, total] of the softmax."""

    width: int
    rows: int
    line: int
    queries: Buffer
    kv_smem: Buffer  # keys, turned, and then values
    exponents: Buffer
    weights: Buffer
    thread: Expr
    row: Expr
    c: Expr
    sums: Buffer
    softmax: Buffer

    @property
    def threads(self) -> int:
        return self.rows * KEYS_PER_STEP


def _state_of(width: int, rows: int, thread: Expr) -> _TileState:
    line, per = KEYS_PER_STEP + 1, -(-width // KEYS_PER_STEP)
    queries, kv_smem = b.shared(rows * (width + 1)), b.shared(line * width)
    exponents, weights = b.shared(rows * line), b.shared(rows * line)
    row, c = T.Bind(b.div(thread, KEYS_PER_STEP)), T.Bind(b.mod(thread, KEYS_PER_STEP))
    sums, softmax = b.local(per), b.local(2)
    for j in range(per):
        b.store(sums, j, b.f32(0.0))
    b.store(softmax, 0, b.f32(b.MINUS_INFINITY))
    b.store(softmax, 1, b.f32(0.0))
    return _TileState(width, rows, line, queries, kv_smem, exponents, weights, thread, row, c, sums, softmax)


def _attend(
    layout: CacheLayout, q: Buffer, position: Buffer, scores: Scores, tile: _Tile, keys: _Keys, out: Buffer,
    lse: Buffer, thread: Expr,
) -> None:  # fmt: skip
    """out = softmax(q k * scale) v for the rows of a tile; lse = log2 of the sum of 2^exponents."""
    width, heads = layout.head_dim, layout.query_heads
    state = _state_of(width, tile.rows, thread)
    token = T.Bind(tile.token(state.row))

    def load_query(i: Expr) -> None:
        m, d = T.Bind(b.div(i, width)), T.Bind(b.mod(i, width))
        source = ((tile.begin + tile.token(m)) * heads + tile.head) * width + d
        b.store(state.queries, m * (width + 1) + d, b.load(q, source))

    b.strided(thread, state.threads, tile.rows * width, load_query)
    with b.loop(b.ceil_div(keys.end(tile), KEYS_PER_STEP)) as step:
        b.barrier()
        b.strided(thread, state.threads, KEYS_PER_STEP * width, lambda i: _load_key(keys, step, i, state))
        b.barrier()
        key = T.Bind(step * KEYS_PER_STEP + state.c)
        seen = scores.visible(b.load(position, tile.begin + token), key + keys.start, keys.seen(token, key))
        score = T.Bind(tirx.Select(seen, scores.exponent(_dot(state)), b.f32(b.MINUS_INFINITY)))
        b.store(state.exponents, state.row * state.line + state.c, score)
        b.barrier()
        decay = _softmax_step(state, score)
        b.strided(thread, state.threads, KEYS_PER_STEP * width, lambda i: _load_value(keys, step, i, state))
        b.barrier()
        _accumulate_values(state, decay)
    with b.when(tile.first + state.row < tile.count):
        _store_row(state, T.Bind((tile.begin + token) * heads + tile.head), out, lse)


def _dot(state: _TileState) -> Expr:
    """Of the thread's row and key."""
    total = b.local(1)
    b.store(total, 0, b.f32(0.0))
    with b.loop(state.width) as d:
        part = b.load(state.queries, state.row * (state.width + 1) + d) * b.load(
            state.kv_smem, d * state.line + state.c
        )
        b.store(total, 0, b.load(total, 0) + part)
    return b.load(total, 0)


def _softmax_step(state: _TileState, score: Expr) -> Expr:
    """The thread's weight, by the new top of its row; returns what the sums so far are worth by it."""
    others = [b.load(state.exponents, state.row * state.line + i) for i in range(KEYS_PER_STEP)]
    top = T.Bind(b.reduce([b.load(state.softmax, 0), *others], b.maximum))
    power = tirx.Select(score > b.f32(b.MINUS_INFINITY / 2), tirx.exp2(score - top), b.f32(0.0))
    b.store(state.weights, state.row * state.line + state.c, power)
    decay = T.Bind(tirx.exp2(b.load(state.softmax, 0) - top))
    b.store(state.softmax, 0, top)
    return decay


def _store_row(state: _TileState, place: Expr, out: Buffer, lse: Buffer) -> None:
    """The row's result, at ``place`` of all tokens and heads."""
    total = T.Bind(T.max(b.load(state.softmax, 1), b.f32(1e-37)))
    for j in range(-(-state.width // KEYS_PER_STEP)):
        d = state.c + j * KEYS_PER_STEP
        result = b.load(state.sums, j) / total
        b.guarded(
            None if (j + 1) * KEYS_PER_STEP <= state.width else d < state.width,
            lambda d=d, result=result: b.store(out, place * state.width + d, result),  # type: ignore[misc]
        )
    with b.when(tirx.EQ(state.c, 0)):
        b.store(lse, place, b.load(state.softmax, 0) + tirx.log2(total))


def _load_key(keys: _Keys, step: Expr, i: Expr, state: _TileState) -> None:
    """room[d, c] = feature d of key c, read in the order in which they lie."""
    if keys.turned:
        d, c = T.Bind(b.div(i, KEYS_PER_STEP)), T.Bind(b.mod(i, KEYS_PER_STEP))
    else:
        c, d = T.Bind(b.div(i, state.width)), T.Bind(b.mod(i, state.width))
    b.store(state.kv_smem, d * state.line + c, keys.key(step, c, d))


def _load_value(keys: _Keys, step: Expr, i: Expr, state: _TileState) -> None:
    """room[c, d] = feature d of value c; zero past the last token."""
    c, d = T.Bind(b.div(i, state.width)), T.Bind(b.mod(i, state.width))
    inside = step * KEYS_PER_STEP + c < keys.tokens
    b.store(state.kv_smem, i, tirx.if_then_else(inside, keys.value(step, c, d), b.f32(0.0)))


def _accumulate_values(state: _TileState, decay: Expr) -> None:
    """Add the values of a step's keys to the sums of the row's features c, c + KEYS, ..."""
    shares = [T.Bind(b.load(state.weights, state.row * state.line + i)) for i in range(KEYS_PER_STEP)]
    b.store(state.softmax, 1, b.load(state.softmax, 1) * decay + b.reduce(shares, b.add))
    for j in range(-(-state.width // KEYS_PER_STEP)):
        d = T.min(state.c + j * KEYS_PER_STEP, state.width - 1)
        values = [shares[i] * b.load(state.kv_smem, i * state.width + d) for i in range(KEYS_PER_STEP)]
        b.store(state.sums, j, b.load(state.sums, j) * decay + b.reduce(values, b.add))


def prefill_paged(layout: CacheLayout, traits: GpuTraits) -> tirx.PrimFunc:
    """Query tokens against everything that the pages held before them; every row sees all of it."""
    if flash := flash_tile_of(layout, traits):
        return flash_paged(layout, flash)
    batch, total, heads = b.size("batch"), b.size("total"), layout.query_heads

    def body(q: Buffer, q_indptr: Buffer, pages: Buffer, indptr: Buffer, table: Buffer, last: Buffer, k_start: Buffer,
             position: Buffer, out: Buffer, lse: Buffer, _causal: Expr, _mode: Expr, _scale: Expr, _theta: Expr,
             scale: Expr) -> None:  # fmt: skip
        paged, width = Paged(layout, pages, indptr, table, last), layout.head_dim

        def keys_of(sequence: Expr, head: Expr, _count: Expr) -> _Keys:
            tokens = paged.tokens(sequence)

            def key(step: Expr, c: Expr, d: Expr) -> Expr:
                page = paged.page(sequence, step * KEYS_PER_STEP)
                return b.load(pages, key_base(layout, page, head) + d * PAGE + c)

            def value(step: Expr, c: Expr, d: Expr) -> Expr:
                page = paged.page(sequence, step * KEYS_PER_STEP)
                return b.load(pages, value_base(layout, page, head) + c * width + d)

            start = T.Bind(b.load(k_start, sequence))
            return _Keys(True, key, value, tokens, lambda _token, key: key < tokens, start, lambda _tile: tokens)

        _prefill(layout, traits, q, q_indptr, position, batch, Scores(layout, scale), keys_of, out, lse)

    result = (total, heads, layout.head_dim)
    return b.kernel(
        [
            Arg("q", result),
            Arg("q_indptr", (b.size("q_indptr_size"),), "int32", offset=True),
            pages_arg(layout),
            *table_args(batch),
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


def prefill_ragged(layout: CacheLayout, traits: GpuTraits) -> tirx.PrimFunc:
    """The new tokens of each sequence among themselves; causal: a token sees itself and those before it."""
    if flash := flash_tile_of(layout, traits):
        return flash_ragged(layout, flash)
    q_total, k_total, batch = b.size("q_total"), b.size("k_total"), b.size("batch")
    heads, width = layout.query_heads, layout.head_dim

    def body(q: Buffer, q_indptr: Buffer, k: Buffer, v: Buffer, k_indptr: Buffer, position: Buffer, k_start: Buffer,
             out: Buffer, lse: Buffer, causal: Expr, _mode: Expr, _scale: Expr, _theta: Expr,
             scale: Expr) -> None:  # fmt: skip
        def keys_of(sequence: Expr, head: Expr, count: Expr) -> _Keys:
            begin = T.Bind(b.load(k_indptr, sequence))
            tokens = T.Bind(b.load(k_indptr, sequence + 1) - begin)

            def at(step: Expr, c: Expr, d: Expr) -> Expr:
                token = begin + T.min(step * KEYS_PER_STEP + c, tokens - 1)
                return (token * layout.key_heads + head) * width + d

            def seen(token: Expr, key: Expr) -> Expr:
                return tirx.And(key < tokens, tirx.Or(tirx.EQ(causal, 0), key <= tokens - count + token))

            def end(tile: _Tile) -> Expr:
                last = T.min(tile.first + tile.rows, count) + (tokens - count)
                return T.Bind(tirx.Select(tirx.EQ(causal, 0), tokens, last))

            start = T.Bind(b.load(k_start, sequence))
            return _Keys(False, lambda *p: b.load(k, at(*p)), lambda *p: b.load(v, at(*p)), tokens, seen, start, end)

        _prefill(layout, traits, q, q_indptr, position, batch, Scores(layout, scale), keys_of, out, lse)

    result, source = (q_total, heads, width), (k_total, layout.key_heads, width)
    return b.kernel(
        [
            Arg("q", result),
            Arg("q_indptr", (b.size("q_indptr_size"),), "int32", offset=True),
            Arg("k", source),
            Arg("v", source),
            Arg("k_indptr", (b.size("k_indptr_size"),), "int32", offset=True),
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
