"""Attention of one query token per sequence over a paged KV cache on a GPU, float32.

A block takes the query heads that share a key head, and a part of a sequence; each group of its threads takes a page at
a time (team.py). Where sequences are cut into several parts, a second launch joins the parts' results.

At a short context all that counts is how often a block waits for memory: for the page table, which it reads while the
kernel in front still runs, and then once for the query, keys and values together, where there are registers for it.

Axes: A query heads, D features of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx

from builder.lowering.choices import choose
from builder.lowering.schedules.gpu import block as b
from builder.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits, Scalar
from builder.lowering.schedules.gpu.cache import PAGE, key_base, pages_arg, value_base
from builder.lowering.schedules.gpu.paged import ROTARY, Paged, Scores, table_args
from builder.lowering.schedules.gpu.thread_groups import Member, Team, join_groups, member_of, team_of, working
from builder.lowering.schedules.ir import T
from builder.ops.kv_cache import CacheLayout

SHARED_HEADS = 8  # query heads of one block, at most
AHEAD_HEADS = 4  # of a block that has the registers to ask for its next pages while it works on these, at most
TOGETHER = 4  # loads that are asked for together without those registers
SHORT = 16  # pages of a sequence that is not worth a second launch
MOST_PARTS = 32  # of a sequence
FULL = 128  # blocks that keep a large GPU busy


@dataclass(frozen=True, slots=True)
class Results:
    """Of the kernel: ``out`` (rows, D) and ``lse`` (rows,), where rows = sequences * heads. And of the ``parts`` of
    sequences, if they have several: ``some`` (rows, parts, D + 4), the values and, behind them, the lse of each."""

    width: int
    parts: Expr
    out: Buffer
    lse: Buffer
    some: Buffer

    def place(self, row: Expr, number: Expr) -> Expr:
        return (row * self.parts + number) * (self.width + 4)

    def put(self, row: Expr, d: Expr, value: Expr, log: Expr) -> None:
        b.store(self.out, row * self.width + d, value)
        with b.when(tirx.EQ(d, 0)):
            b.store(self.lse, row, log)

    def put_part(self, row: Expr, number: Expr, d: Expr, value: Expr, log: Expr) -> None:
        b.store(self.some, self.place(row, number) + d, value)
        with b.when(tirx.EQ(d, 0)):
            b.store(self.some, self.place(row, number) + self.width, log)


@dataclass(frozen=True, slots=True)
class Part:
    """Part ``number`` of a ``sequence``: its pages from ``begin`` to ``end``. ``first``: row of the first query head,
    which has this key ``head``; ``seen``: whether the query sees a token."""

    sequence: Expr
    head: Expr
    first: Expr
    number: Expr
    begin: Expr
    end: Expr
    seen: Callable[[Expr], Expr]


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a thread asked for of its next page: ``keys`` (features, 4 tokens), ``values`` (PAGE, 4 features)."""

    keys: Buffer
    values: Buffer


@dataclass(frozen=True, slots=True)
class Work:
    """Memory of the block: ``queries`` (rows, padded), ``room``, ``weights`` (rows, groups, PAGE). Of the thread: the
    number of the ``page`` that comes next."""

    team: Team
    paged: Paged
    scores: Scores
    part: Part
    me: Member
    queries: Buffer
    room: Buffer
    weights: Buffer
    page: Buffer
    ahead: Ahead | None

    def at(self, step: Expr) -> Expr:
        """Which page of the sequence the thread's group has in a step."""
        return self.part.begin + step * self.team.groups + self.me.group

    def has(self, step: Expr, members: int) -> Expr:
        """Whether it has one, and the thread is one of the first members."""
        return tirx.And(self.at(step) < self.part.end, working(self.team, self.me, members))


def decode(layout: CacheLayout, traits: GpuTraits) -> tirx.PrimFunc:
    """One query token per sequence; its keys are in the pages already."""
    width, heads, shared = layout.head_dim, layout.query_heads, layout.query_heads // layout.key_heads
    batch, team = b.size("batch"), team_of(width, min(SHARED_HEADS, shared), traits)
    turns = -(-shared // team.rows)
    each = layout.key_heads * turns
    choose(
        "split-KV", f"query heads that share a key head, {SHARED_HEADS} at most, are taken together", heads=team.rows,
        groups=team.groups, most_parts=MOST_PARTS,
    )  # fmt: skip

    def body(q: Buffer, pages: Buffer, indptr: Buffer, table: Buffer, last: Buffer, k_start: Buffer, position: Buffer,
             out: Buffer, lse: Buffer, _mode: Expr, _scale: Expr, _theta: Expr, scale: Expr) -> None:  # fmt: skip
        paged, scores = Paged(layout, pages, indptr, table, last), Scores(layout, scale)
        parts = T.Bind(parts_of(team, table.shape[0], batch, batch * each))  # on the host, which keeps nothing
        results = Results(width, parts, out, lse, b.scratch(batch * (heads * (width + 4)) * parts))
        with b.launch(traits.threads, batch * each, parts) as (block, number, thread):
            sequence, turn = T.Bind(b.div(block, each)), T.Bind(b.mod(block, each))
            head = T.Bind(b.div(turn, turns))
            first = T.Bind(head * shared + T.min(b.mod(turn, turns) * team.rows, shared - team.rows))
            count, tokens = paged.count(sequence), paged.tokens(sequence)
            share = b.materialize(pages_of_part(team, count, parts))
            begin, end = b.materialize(number * share), b.materialize(T.min((number + 1) * share, count))
            seen = scores.sight(position, k_start, sequence, tokens)
            part = Part(sequence, head, T.Bind(sequence * heads + first), number, begin, end, seen)
            one_part(traits, work_of(traits, team, paged, scores, part, thread), tokens, q, results)
        with b.when(parts > 1):
            join_parts(traits, team, paged, batch * heads, results)

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


def parts_of(team: Team, pages: Expr, batch: Expr, blocks: Expr) -> Expr:
    """Parts of every sequence, by ``pages`` of all of them, which is what the host knows: where they are long on the
    average, enough parts for FULL blocks, but of a step at least."""
    filling, whole = b.div(blocks + (FULL - 1), blocks), b.div(pages, batch * team.groups)
    parts = T.max(T.min(T.min(filling, whole), b.i32(MOST_PARTS)), b.i32(1))
    return tirx.Select(pages > batch * SHORT, parts, b.i32(1))


def pages_of_part(team: Team, pages: Expr, parts: Expr) -> Expr:
    """Whole steps, one at least."""
    return b.ceil_div(b.div(T.max(pages, b.i32(1)) + (parts - 1), parts), team.groups) * team.groups


def work_of(traits: GpuTraits, team: Team, paged: Paged, scores: Scores, part: Part, thread: Expr) -> Work:
    asks = traits.rows_per_thread > b.ROWS_PER_THREAD and team.rows <= AHEAD_HEADS
    ahead = Ahead(b.local(team.features * 4), b.local(PAGE * 4)) if asks else None
    queries, room = b.shared(team.rows * team.padded), b.shared(team.room)
    weights = b.shared(team.rows * team.groups * PAGE)
    me = member_of(team, thread)
    return Work(team, paged, scores, part, me, queries, room, weights, b.local(1, "int32"), ahead)


def one_part(traits: GpuTraits, work: Work, tokens: Expr, q: Buffer, results: Results) -> None:
    """The result of one part; the first has one even without tokens."""
    team, part = work.team, work.part
    steps = b.materialize(b.ceil_div(T.max(part.end - part.begin, b.i32(0)), team.groups))
    find_page(work, b.i32(0))
    traits.wait()
    with b.when(tirx.Or(steps > 0, tirx.EQ(part.number, 0))):
        take_queries(work, tokens, q)
        with b.loop(steps) as step:
            one_step(work, step, tokens)

        def put(r: Expr, d: Expr, value: Expr, log: Expr) -> None:
            row = part.first + r
            b.if_else(
                results.parts > 1,
                lambda: results.put_part(row, part.number, d, value, log),
                lambda: results.put(row, d, value, log),
            )

        join_groups(team, work.me, work.room, put)


def find_page(work: Work, step: Expr) -> None:
    """Ask the page table for the page of a step."""
    with b.when(work.has(step, work.team.members)):
        b.store(work.page, 0, work.paged.page(work.part.sequence, work.at(step) * PAGE))


def take_queries(work: Work, tokens: Expr, q: Buffer) -> None:
    """The block's queries, zero past their last feature. The pages of the first step are asked for with them."""
    team, threads = work.team, work.team.threads
    count = team.rows * team.padded
    places = [T.Bind(work.me.thread + turn * threads) for turn in range(-(-count // threads))]
    held = b.local(len(places))
    for turn, i in enumerate(places):
        r, d = b.div(i, team.padded), b.mod(i, team.padded)
        value = b.load(q, (work.part.first + r) * team.width + d)
        b.store(held, turn, tirx.if_then_else(tirx.And(i < count, d < team.width), value, b.f32(0.0)))
    if work.ahead:
        ask_keys(work, work.ahead.keys, b.i32(0))
        ask_values(work, work.ahead.values, b.i32(0), tokens)
        find_page(work, b.i32(1))
    for turn, i in enumerate(places):
        with b.when(i < count):
            b.store(work.queries, i, b.load(held, turn))
    b.barrier()


def ask_keys(work: Work, keys: Buffer, step: Expr) -> None:
    with b.when(work.has(step, work.team.slices * 4)):
        key = key_places(work)
        for j in range(work.team.features):
            b.copy(work.paged.pages, key(j), keys, j * 4, 4)


def ask_values(work: Work, values: Buffer, step: Expr, tokens: Expr) -> None:
    with b.when(work.has(step, work.team.width // 4)):
        value = value_places(work, step, tokens)
        for t in range(PAGE):
            b.copy(work.paged.pages, value(t), values, t * 4, 4)


def key_places(work: Work) -> Callable[[int], Expr]:
    """Where the thread's j-th feature of its four tokens of the next page lies; past the last one, that."""
    team, place = work.team, work.me.place
    base = key_base(work.paged.layout, T.Bind(b.load(work.page, 0)), work.part.head)
    slice_, token = b.div(place, 4), b.mod(place, 4) * 4

    def at(j: int) -> Expr:
        d = slice_ + j * team.slices
        return base + (d if (j + 1) * team.slices <= team.width else T.min(d, team.width - 1)) * PAGE + token

    return at


def value_places(work: Work, step: Expr, tokens: Expr) -> Callable[[int], Expr]:
    """Where the thread's features of token t of the next page lie; past the last token, that one's."""
    base = value_base(work.paged.layout, T.Bind(b.load(work.page, 0)), work.part.head) + work.me.place * 4
    last = b.materialize(tokens - 1 - work.at(step) * PAGE)
    return lambda t: base + T.min(last, b.i32(t)) * work.team.width


def keys_of(work: Work) -> Callable[[int], list[Expr]]:
    """The thread's j-th feature of its four tokens."""
    if work.ahead:
        keys = work.ahead.keys
        return lambda j: [b.load(keys, j * 4 + t) for t in range(4)]
    key = key_places(work)
    return lambda j: b.fetch(work.paged.pages, key(j), 4, "float32")


def values_of(work: Work, step: Expr, tokens: Expr) -> Callable[[int], list[Expr]]:
    """The thread's four features of token t."""
    if work.ahead:
        values = work.ahead.values
        return lambda t: [b.load(values, t * 4 + i) for i in range(4)]
    value = value_places(work, step, tokens)
    return lambda t: b.fetch(work.paged.pages, value(t), 4, "float32")


def one_step(work: Work, step: Expr, tokens: Expr) -> None:
    """A page for each group: products, their softmax, values. What is asked for ahead comes in the meantime."""
    team, me, ahead = work.team, work.me, work.ahead
    products, decay = b.local(team.rows * 4), b.local(team.rows)
    with b.when(work.has(step, team.slices * 4)):
        multiply(work, products)
    if ahead:
        ask_keys(work, ahead.keys, step + 1)
    for first in range(0, team.rows, team.together):
        rows = range(first, min(first + team.together, team.rows))
        with b.when(work.has(step, team.slices * 4)):
            for r in rows:
                line = ((r - first) * team.groups + me.group) * (team.slices * PAGE)
                b.copy(products, r * 4, work.room, line + me.place * 4, 4)
        b.barrier()
        b.strided(me.thread, team.threads, len(rows) * team.groups * PAGE, lambda i: add_up(work, step, i))
        b.barrier()
        with b.when(work.has(step, team.members)):
            for r in rows:
                weigh(work, r, r - first, decay)
        b.barrier()
    with b.when(work.has(step, team.width // 4)):
        gather(work, step, tokens, decay)
    if ahead:
        ask_values(work, ahead.values, step + 1, tokens)
    find_page(work, step + (2 if ahead else 1))


def multiply(work: Work, products: Buffer) -> None:
    """The thread's products of queries and keys: four tokens, some of the features."""
    team, slice_ = work.team, T.Bind(b.div(work.me.place, 4))
    key = keys_of(work)
    for place in range(team.rows * 4):
        b.store(products, place, b.f32(0.0))
    for first in range(0, team.features, TOGETHER):
        some = range(first, min(first + TOGETHER, team.features))
        keys = [key(j) for j in some]
        for r in range(team.rows):
            query = [T.Bind(b.load(work.queries, r * team.padded + j * team.slices + slice_)) for j in some]
            for t in range(4):
                terms = [one * four[t] for one, four in zip(query, keys, strict=True)]
                b.store(products, r * 4 + t, b.reduce([b.load(products, r * 4 + t), *terms], b.add))


def add_up(work: Work, step: Expr, i: Expr) -> None:
    """The exponent of one token and row, where the first slice had its product; it is the thread's own."""
    team, part = work.team, work.part
    pair, t = T.Bind(b.div(i, PAGE)), T.Bind(b.mod(i, PAGE))
    place = T.Bind(pair * (team.slices * PAGE) + t)
    product = b.reduce([b.load(work.room, place + s * PAGE) for s in range(team.slices)], b.add)
    token = T.Bind((part.begin + step * team.groups + b.mod(pair, team.groups)) * PAGE + t)
    exponent = T.Bind(work.scores.exponent(product))
    b.store(work.room, place, tirx.Select(part.seen(token), exponent, b.f32(b.MINUS_INFINITY)))


def weigh(work: Work, r: int, turn: int, decay: Buffer) -> None:
    """Weights of the tokens of the group's page for row r, the ``turn``-th in the block's memory, by the new top;
    decay: what the sums so far are worth by it."""
    team, me = work.team, work.me
    line = T.Bind((turn * team.groups + me.group) * (team.slices * PAGE))
    exponents = [e for t in range(0, PAGE, 4) for e in b.fetch(work.room, line + t, 4, "float32")]
    top = T.Bind(b.reduce([b.load(me.top, r), *exponents], b.maximum))
    b.store(decay, r, tirx.exp2(b.load(me.top, r) - top))
    b.store(me.top, r, top)

    def one(t: Expr) -> None:
        exponent = T.Bind(b.load(work.room, line + t))
        weight = tirx.Select(exponent > b.f32(b.MINUS_INFINITY / 2), tirx.exp2(exponent - top), b.f32(0.0))
        b.store(work.weights, (r * team.groups + me.group) * PAGE + t, weight)

    b.strided(me.place, team.members, PAGE, one)


def gather(work: Work, step: Expr, tokens: Expr, decay: Buffer) -> None:
    """Add the values of the group's page to the sums, and the weights to the totals."""
    team, me = work.team, work.me
    value = values_of(work, step, tokens)
    for r in range(team.rows):
        b.store(me.total, r, b.load(me.total, r) * b.load(decay, r))
        for i in range(4):
            b.store(me.sums, r * 4 + i, b.load(me.sums, r * 4 + i) * b.load(decay, r))
    for first in range(0, PAGE, 4):
        some = range(first, first + 4)
        values = [value(t) for t in some]
        for r in range(team.rows):
            weights = b.fetch(work.weights, (r * team.groups + me.group) * PAGE + first, 4, "float32")
            b.store(me.total, r, b.reduce([b.load(me.total, r), *weights], b.add))
            for i in range(4):
                terms = [weight * four[i] for weight, four in zip(weights, values, strict=True)]
                b.store(me.sums, r * 4 + i, b.reduce([b.load(me.sums, r * 4 + i), *terms], b.add))


def join_parts(traits: GpuTraits, team: Team, paged: Paged, rows: Expr, results: Results) -> None:
    """The result of each row from its parts, each of which is worth 2^lse; groups of threads share the parts."""
    team = replace(team, rows=1, together=1)
    with b.launch(traits.threads, rows) as (row, _, thread):
        pages = paged.count(T.Bind(b.div(row, paged.layout.query_heads)))
        share = b.materialize(pages_of_part(team, pages, results.parts))
        last = b.materialize(T.max(b.div(pages + (share - 1), share), b.i32(1)) - 1)
        me, room = member_of(team, thread), b.shared(team.room)
        turns = range(-(-MOST_PARTS // team.groups))
        logs, values = b.local(len(turns)), b.local(len(turns) * 4)
        traits.wait()
        for turn in turns:
            part = results.place(row, T.min(me.group + turn * team.groups, last))
            log = T.Bind(b.load(results.some, part + team.width))
            b.store(logs, turn, log)
            b.copy(results.some, part + T.min(me.place * 4, team.width - 4), values, turn * 4, 4)
        for turn in turns:
            real = me.group + turn * team.groups <= last
            b.store(logs, turn, tirx.Select(real, b.load(logs, turn), b.f32(b.MINUS_INFINITY)))
            b.store(me.top, 0, T.max(b.load(me.top, 0), b.load(logs, turn)))
        for turn in turns:
            real = me.group + turn * team.groups <= last
            weight = T.Bind(tirx.Select(real, tirx.exp2(b.load(logs, turn) - b.load(me.top, 0)), b.f32(0.0)))
            b.store(me.total, 0, b.load(me.total, 0) + weight)
            for i in range(4):
                b.store(me.sums, i, b.load(me.sums, i) + weight * b.load(values, turn * 4 + i))
        join_groups(team, me, room, lambda _, *result: results.put(row, *result))
