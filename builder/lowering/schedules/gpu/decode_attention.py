"""Attention of one query token per sequence over a paged KV cache on a GPU, float32.

A block takes the query heads that share a key head, and a part of a sequence; each group of its threads takes a page at
a time (thread_groups.py). Split-KV: where sequences are cut into several splits, a second launch combines their
results.

At a short context all that counts is how often a block waits for memory: for the page table, which it reads while the
kernel in front still runs, and then once for the query, keys and values together, where there are registers for it.

Axes: A query heads, D features of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx

from llm_build.lowering.choices import choose
from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits, Scalar
from llm_build.lowering.schedules.gpu.cache import PAGE, key_base, pages_arg, value_base
from llm_build.lowering.schedules.gpu.paged import ROTARY, Paged, Scores, table_args
from llm_build.lowering.schedules.gpu.thread_groups import (
    ThreadGroups,
    ThreadState,
    combine_groups,
    grouping_of,
    initial_state,
    is_active,
)
from llm_build.lowering.schedules.ir import T
from llm_build.ops.kv_cache import CacheLayout

MAX_HEADS_PER_BLOCK = 8  # query heads of one block, at most
PREFETCH_MAX_HEADS = 4  # of a block that has the registers to load its next pages while it works on these, at most
KEYS_IN_FLIGHT = 4  # loads at a time without those registers
SINGLE_SPLIT_PAGES = 16  # pages of a sequence that is not worth a second launch
MAX_SPLITS = 32  # of a sequence
TARGET_BLOCKS = 128  # blocks that keep a large GPU busy


@dataclass(frozen=True, slots=True)
class _Results:
    """Of the kernel: ``out`` (rows, D) and ``lse`` (rows,), where rows = sequences * heads. And of the ``splits`` of
    sequences, if they have several: ``partial`` (rows, splits, D + 4), the values and, behind them, the lse of each."""

    width: int
    splits: Expr
    out: Buffer
    lse: Buffer
    partial: Buffer

    def place(self, row: Expr, index: Expr) -> Expr:
        return (row * self.splits + index) * (self.width + 4)

    def store(self, row: Expr, d: Expr, value: Expr, log: Expr) -> None:
        b.store(self.out, row * self.width + d, value)
        with b.when(tirx.EQ(d, 0)):
            b.store(self.lse, row, log)

    def store_split(self, row: Expr, index: Expr, d: Expr, value: Expr, log: Expr) -> None:
        b.store(self.partial, self.place(row, index) + d, value)
        with b.when(tirx.EQ(d, 0)):
            b.store(self.partial, self.place(row, index) + self.width, log)


@dataclass(frozen=True, slots=True)
class _Split:
    """Split ``index`` of a ``sequence``: its pages from ``begin`` to ``end``. ``first``: row of the first query head,
    which has this key ``head``; ``seen``: whether the query sees a token."""

    sequence: Expr
    head: Expr
    first: Expr
    index: Expr
    begin: Expr
    end: Expr
    seen: Callable[[Expr], Expr]


@dataclass(frozen=True, slots=True)
class _Prefetched:
    """What a thread loaded ahead of its next page: ``keys`` (features, 4 tokens), ``values`` (PAGE, 4 features)."""

    keys: Buffer
    values: Buffer


@dataclass(frozen=True, slots=True)
class _SplitState:
    """Memory of the block: ``queries`` (rows, padded width), ``smem`` for products and sums, ``weights`` (rows, groups,
    PAGE). Of the thread: the number of the ``page`` that comes next."""

    grouping: ThreadGroups
    paged: Paged
    scores: Scores
    split: _Split
    own: ThreadState
    queries: Buffer
    smem: Buffer
    weights: Buffer
    page: Buffer
    prefetched: _Prefetched | None

    def at(self, step: Expr) -> Expr:
        """Which page of the sequence the thread's group has in a step."""
        return self.split.begin + step * self.grouping.groups + self.own.group

    def has_page(self, step: Expr, threads_per_group: int) -> Expr:
        """Whether it has one, and the thread is one of the first of its group."""
        return tirx.And(self.at(step) < self.split.end, is_active(self.grouping, self.own, threads_per_group))


def decode(layout: CacheLayout, traits: GpuTraits) -> tirx.PrimFunc:
    """One query token per sequence; its keys are in the pages already."""
    width, heads, shared = layout.head_dim, layout.query_heads, layout.query_heads // layout.key_heads
    batch, grouping = b.size("batch"), grouping_of(width, min(MAX_HEADS_PER_BLOCK, shared), traits)
    turns = -(-shared // grouping.rows)
    each = layout.key_heads * turns
    choose(
        "split-KV", f"query heads that share a key head, {MAX_HEADS_PER_BLOCK} at most, are taken together",
        heads=grouping.rows, groups=grouping.groups, max_splits=MAX_SPLITS,
    )  # fmt: skip

    def body(q: Buffer, pages: Buffer, indptr: Buffer, table: Buffer, last: Buffer, k_start: Buffer, position: Buffer,
             out: Buffer, lse: Buffer, _mode: Expr, _scale: Expr, _theta: Expr, scale: Expr) -> None:  # fmt: skip
        paged, scores = Paged(layout, pages, indptr, table, last), Scores(layout, scale)
        splits = T.Bind(
            _count_splits(grouping, table.shape[0], batch, batch * each)
        )  # on the host, which keeps nothing
        results = _Results(width, splits, out, lse, b.scratch(batch * (heads * (width + 4)) * splits))
        with b.launch(traits.threads, batch * each, splits) as (block, index, thread):
            sequence, turn = T.Bind(b.div(block, each)), T.Bind(b.mod(block, each))
            head = T.Bind(b.div(turn, turns))
            first = T.Bind(head * shared + T.min(b.mod(turn, turns) * grouping.rows, shared - grouping.rows))
            count, tokens = paged.count(sequence), paged.tokens(sequence)
            pages_of_each = b.materialize(_pages_per_split(grouping, count, splits))
            begin, end = b.materialize(index * pages_of_each), b.materialize(T.min((index + 1) * pages_of_each, count))
            seen = scores.sight(position, k_start, sequence, tokens)
            split = _Split(sequence, head, T.Bind(sequence * heads + first), index, begin, end, seen)
            _attend_split(traits, _state_of(traits, grouping, paged, scores, split, thread), tokens, q, results)
        with b.when(splits > 1):
            combine_split_kv(traits, grouping, paged, batch * heads, results)

    result = (batch, heads, width)
    return b.kernel(
        [
            Arg("q", result),
            pages_arg(layout),
            *table_args(batch),
            Arg("k_rope_offset", (batch,), "int32", offset=True),
            Arg("q_rope_position", (batch,), "int32", offset=True),
            Arg("out", result),
            Arg("lse", (batch, heads)),
            *ROTARY,
            Scalar("scale", "float32"),
        ],
        body,
    )


def _count_splits(grouping: ThreadGroups, pages: Expr, batch: Expr, blocks: Expr) -> Expr:
    """Splits of every sequence, by ``pages`` of all of them, which is what the host knows: where they are long on the
    average, enough for TARGET_BLOCKS blocks, but of a step at least."""
    filling, whole = b.div(blocks + (TARGET_BLOCKS - 1), blocks), b.div(pages, batch * grouping.groups)
    splits = T.max(T.min(T.min(filling, whole), b.i32(MAX_SPLITS)), b.i32(1))
    return tirx.Select(pages > batch * SINGLE_SPLIT_PAGES, splits, b.i32(1))


def _pages_per_split(grouping: ThreadGroups, pages: Expr, splits: Expr) -> Expr:
    """Whole steps, one at least."""
    return b.ceil_div(b.div(T.max(pages, b.i32(1)) + (splits - 1), splits), grouping.groups) * grouping.groups


def _state_of(
    traits: GpuTraits, grouping: ThreadGroups, paged: Paged, scores: Scores, split: _Split, thread: Expr
) -> _SplitState:
    prefetches = traits.rows_per_thread > b.ROWS_PER_THREAD and grouping.rows <= PREFETCH_MAX_HEADS
    prefetched = _Prefetched(b.local(grouping.features * 4), b.local(PAGE * 4)) if prefetches else None
    queries, smem = b.shared(grouping.rows * grouping.padded_width), b.shared(grouping.smem_values)
    weights = b.shared(grouping.rows * grouping.groups * PAGE)
    own = initial_state(grouping, thread)
    return _SplitState(grouping, paged, scores, split, own, queries, smem, weights, b.local(1, "int32"), prefetched)


def _attend_split(traits: GpuTraits, state: _SplitState, tokens: Expr, q: Buffer, results: _Results) -> None:
    """The result of one split; the first has one even without tokens."""
    grouping, split = state.grouping, state.split
    steps = b.materialize(b.ceil_div(T.max(split.end - split.begin, b.i32(0)), grouping.groups))
    _load_page_index(state, b.i32(0))
    traits.wait()
    with b.when(tirx.Or(steps > 0, tirx.EQ(split.index, 0))):
        _load_queries(state, tokens, q)
        with b.loop(steps) as step:
            _attend_pages(state, step, tokens)

        def store(r: Expr, d: Expr, value: Expr, log: Expr) -> None:
            row = split.first + r
            b.if_else(
                results.splits > 1,
                lambda: results.store_split(row, split.index, d, value, log),
                lambda: results.store(row, d, value, log),
            )

        combine_groups(grouping, state.own, state.smem, store)


def _load_page_index(state: _SplitState, step: Expr) -> None:
    """Ask the page table for the page of a step."""
    with b.when(state.has_page(step, state.grouping.threads_per_group)):
        b.store(state.page, 0, state.paged.page(state.split.sequence, state.at(step) * PAGE))


def _load_queries(state: _SplitState, tokens: Expr, q: Buffer) -> None:
    """The block's queries, zero past their last feature. The pages of the first step are asked for with them."""
    grouping, threads = state.grouping, state.grouping.threads
    count = grouping.rows * grouping.padded_width
    places = [T.Bind(state.own.thread + turn * threads) for turn in range(-(-count // threads))]
    loaded = b.local(len(places))
    for turn, i in enumerate(places):
        r, d = b.div(i, grouping.padded_width), b.mod(i, grouping.padded_width)
        value = b.load(q, (state.split.first + r) * grouping.width + d)
        b.store(loaded, turn, tirx.if_then_else(tirx.And(i < count, d < grouping.width), value, b.f32(0.0)))
    if state.prefetched:
        _prefetch_keys(state, state.prefetched.keys, b.i32(0))
        _prefetch_values(state, state.prefetched.values, b.i32(0), tokens)
        _load_page_index(state, b.i32(1))
    for turn, i in enumerate(places):
        with b.when(i < count):
            b.store(state.queries, i, b.load(loaded, turn))
    b.barrier()


def _prefetch_keys(state: _SplitState, keys: Buffer, step: Expr) -> None:
    with b.when(state.has_page(step, state.grouping.slices * 4)):
        key = _key_addresses(state)
        for j in range(state.grouping.features):
            b.copy(state.paged.pages, key(j), keys, j * 4, 4)


def _prefetch_values(state: _SplitState, values: Buffer, step: Expr, tokens: Expr) -> None:
    with b.when(state.has_page(step, state.grouping.width // 4)):
        value = _value_addresses(state, step, tokens)
        for t in range(PAGE):
            b.copy(state.paged.pages, value(t), values, t * 4, 4)


def _key_addresses(state: _SplitState) -> Callable[[int], Expr]:
    """Where the thread's j-th feature of its four tokens of the next page lies; past the last one, that."""
    grouping, place = state.grouping, state.own.place
    base = key_base(state.paged.layout, T.Bind(b.load(state.page, 0)), state.split.head)
    slice_, token = b.div(place, 4), b.mod(place, 4) * 4

    def at(j: int) -> Expr:
        d = slice_ + j * grouping.slices
        return (
            base + (d if (j + 1) * grouping.slices <= grouping.width else T.min(d, grouping.width - 1)) * PAGE + token
        )

    return at


def _value_addresses(state: _SplitState, step: Expr, tokens: Expr) -> Callable[[int], Expr]:
    """Where the thread's features of token t of the next page lie; past the last token, that one's."""
    base = value_base(state.paged.layout, T.Bind(b.load(state.page, 0)), state.split.head) + state.own.place * 4
    last = b.materialize(tokens - 1 - state.at(step) * PAGE)
    return lambda t: base + T.min(last, b.i32(t)) * state.grouping.width


def _key_loads(state: _SplitState) -> Callable[[int], list[Expr]]:
    """The thread's j-th feature of its four tokens."""
    if state.prefetched:
        keys = state.prefetched.keys
        return lambda j: [b.load(keys, j * 4 + t) for t in range(4)]
    key = _key_addresses(state)
    return lambda j: b.fetch(state.paged.pages, key(j), 4, "float32")


def _value_loads(state: _SplitState, step: Expr, tokens: Expr) -> Callable[[int], list[Expr]]:
    """The thread's four features of token t."""
    if state.prefetched:
        values = state.prefetched.values
        return lambda t: [b.load(values, t * 4 + i) for i in range(4)]
    value = _value_addresses(state, step, tokens)
    return lambda t: b.fetch(state.paged.pages, value(t), 4, "float32")


def _attend_pages(state: _SplitState, step: Expr, tokens: Expr) -> None:
    """A page for each group: products, their softmax, values. The prefetched pages come in the meantime."""
    grouping, own, prefetched = state.grouping, state.own, state.prefetched
    products, decay = b.local(grouping.rows * 4), b.local(grouping.rows)
    with b.when(state.has_page(step, grouping.slices * 4)):
        _multiply_keys(state, products)
    if prefetched:
        _prefetch_keys(state, prefetched.keys, step + 1)
    for first in range(0, grouping.rows, grouping.rows_in_smem):
        rows = range(first, min(first + grouping.rows_in_smem, grouping.rows))
        with b.when(state.has_page(step, grouping.slices * 4)):
            for r in rows:
                line = ((r - first) * grouping.groups + own.group) * (grouping.slices * PAGE)
                b.copy(products, r * 4, state.smem, line + own.place * 4, 4)
        b.barrier()
        b.strided(
            own.thread, grouping.threads, len(rows) * grouping.groups * PAGE, lambda i: _reduce_scores(state, step, i)
        )
        b.barrier()
        with b.when(state.has_page(step, grouping.threads_per_group)):
            for r in rows:
                _softmax_step(state, r, r - first, decay)
        b.barrier()
    with b.when(state.has_page(step, grouping.width // 4)):
        _accumulate_values(state, step, tokens, decay)
    if prefetched:
        _prefetch_values(state, prefetched.values, step + 1, tokens)
    _load_page_index(state, step + (2 if prefetched else 1))


def _multiply_keys(state: _SplitState, products: Buffer) -> None:
    """The thread's products of queries and keys: four tokens, some of the features."""
    grouping, slice_ = state.grouping, T.Bind(b.div(state.own.place, 4))
    key = _key_loads(state)
    for place in range(grouping.rows * 4):
        b.store(products, place, b.f32(0.0))
    for first in range(0, grouping.features, KEYS_IN_FLIGHT):
        some = range(first, min(first + KEYS_IN_FLIGHT, grouping.features))
        keys = [key(j) for j in some]
        for r in range(grouping.rows):
            query = [
                T.Bind(b.load(state.queries, r * grouping.padded_width + j * grouping.slices + slice_)) for j in some
            ]
            for t in range(4):
                terms = [one * four[t] for one, four in zip(query, keys, strict=True)]
                b.store(products, r * 4 + t, b.reduce([b.load(products, r * 4 + t), *terms], b.add))


def _reduce_scores(state: _SplitState, step: Expr, i: Expr) -> None:
    """The exponent of one token and row, where the first slice had its product; it is the thread's own."""
    grouping, split = state.grouping, state.split
    pair, t = T.Bind(b.div(i, PAGE)), T.Bind(b.mod(i, PAGE))
    place = T.Bind(pair * (grouping.slices * PAGE) + t)
    product = b.reduce([b.load(state.smem, place + s * PAGE) for s in range(grouping.slices)], b.add)
    token = T.Bind((split.begin + step * grouping.groups + b.mod(pair, grouping.groups)) * PAGE + t)
    exponent = T.Bind(state.scores.exponent(product))
    b.store(state.smem, place, tirx.Select(split.seen(token), exponent, b.f32(b.MINUS_INFINITY)))


def _softmax_step(state: _SplitState, r: int, turn: int, decay: Buffer) -> None:
    """Weights of the tokens of the group's page for row r, the ``turn``-th in the block's memory, by the new top;
    decay: what the sums so far are worth by it."""
    grouping, own = state.grouping, state.own
    line = T.Bind((turn * grouping.groups + own.group) * (grouping.slices * PAGE))
    exponents = [e for t in range(0, PAGE, 4) for e in b.fetch(state.smem, line + t, 4, "float32")]
    top = T.Bind(b.reduce([b.load(own.top, r), *exponents], b.maximum))
    b.store(decay, r, tirx.exp2(b.load(own.top, r) - top))
    b.store(own.top, r, top)

    def one(t: Expr) -> None:
        exponent = T.Bind(b.load(state.smem, line + t))
        weight = tirx.Select(exponent > b.f32(b.MINUS_INFINITY / 2), tirx.exp2(exponent - top), b.f32(0.0))
        b.store(state.weights, (r * grouping.groups + own.group) * PAGE + t, weight)

    b.strided(own.place, grouping.threads_per_group, PAGE, one)


def _accumulate_values(state: _SplitState, step: Expr, tokens: Expr, decay: Buffer) -> None:
    """Add the values of the group's page to the sums, and the weights to the totals."""
    grouping, own = state.grouping, state.own
    value = _value_loads(state, step, tokens)
    for r in range(grouping.rows):
        b.store(own.total, r, b.load(own.total, r) * b.load(decay, r))
        for i in range(4):
            b.store(own.sums, r * 4 + i, b.load(own.sums, r * 4 + i) * b.load(decay, r))
    for first in range(0, PAGE, 4):
        some = range(first, first + 4)
        values = [value(t) for t in some]
        for r in range(grouping.rows):
            weights = b.fetch(state.weights, (r * grouping.groups + own.group) * PAGE + first, 4, "float32")
            b.store(own.total, r, b.reduce([b.load(own.total, r), *weights], b.add))
            for i in range(4):
                terms = [weight * four[i] for weight, four in zip(weights, values, strict=True)]
                b.store(own.sums, r * 4 + i, b.reduce([b.load(own.sums, r * 4 + i), *terms], b.add))


def combine_split_kv(traits: GpuTraits, grouping: ThreadGroups, paged: Paged, rows: Expr, results: _Results) -> None:
    """The result of each row from its splits, each of which is worth 2^lse; groups of threads share the splits."""
    grouping = replace(grouping, rows=1, rows_in_smem=1)
    with b.launch(traits.threads, rows) as (row, _, thread):
        pages = paged.count(T.Bind(b.div(row, paged.layout.query_heads)))
        pages_of_each = b.materialize(_pages_per_split(grouping, pages, results.splits))
        last = b.materialize(T.max(b.div(pages + (pages_of_each - 1), pages_of_each), b.i32(1)) - 1)
        own, smem = initial_state(grouping, thread), b.shared(grouping.smem_values)
        turns = range(-(-MAX_SPLITS // grouping.groups))
        logs, values = b.local(len(turns)), b.local(len(turns) * 4)
        traits.wait()
        for turn in turns:
            split = results.place(row, T.min(own.group + turn * grouping.groups, last))
            log = T.Bind(b.load(results.partial, split + grouping.width))
            b.store(logs, turn, log)
            b.copy(results.partial, split + T.min(own.place * 4, grouping.width - 4), values, turn * 4, 4)
        for turn in turns:
            real = own.group + turn * grouping.groups <= last
            b.store(logs, turn, tirx.Select(real, b.load(logs, turn), b.f32(b.MINUS_INFINITY)))
            b.store(own.top, 0, T.max(b.load(own.top, 0), b.load(logs, turn)))
        for turn in turns:
            real = own.group + turn * grouping.groups <= last
            weight = T.Bind(tirx.Select(real, tirx.exp2(b.load(logs, turn) - b.load(own.top, 0)), b.f32(0.0)))
            b.store(own.total, 0, b.load(own.total, 0) + weight)
            for i in range(4):
                b.store(own.sums, i, b.load(own.sums, i) + weight * b.load(values, turn * 4 + i))
        combine_groups(grouping, own, smem, lambda _, *result: results.store(row, *result))
