"""Attention of one query token per sequence over a paged KV cache on a GPU, float32.

The keys of a sequence are cut into pieces of one token per thread. A block takes the query heads that share a key head
and one piece: scores (a thread each token), their softmax in base 2, and the values summed with its weights (a thread
some features of every so many tokens). The pieces' results are merged by a second launch.

Axes: A query heads, D features of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from builder.lowering.schedules.gpu import block as b
from builder.lowering.schedules.gpu.block import Arg, Buffer, Device, Expr, Scalar
from builder.lowering.schedules.gpu.cache import PAGE, key_base, pages_arg, value_base
from builder.lowering.schedules.gpu.paged import ROTARY, Paged, Scores, table_args
from builder.models.common.kv_cache import CacheLayout

SHARED_HEADS = 8  # query heads of one block, at most
STEP = 16  # features of a key that a thread asks for together; heads are multiples of 4 wide
TURNS = 4  # values that it asks for together


@dataclass(frozen=True, slots=True)
class Piece:
    """What a block of decode works on: ``rows`` query heads from ``first`` of a sequence, and its keys from token
    number * threads on, of ``tokens`` in all. ``position`` of the query, ``start`` of the first key."""

    sequence: Expr
    first: Expr
    rows: int
    head: Expr
    number: Expr
    tokens: Expr
    position: Expr
    start: Expr


@dataclass(frozen=True, slots=True)
class Some:
    """Results of the pieces, in scratch memory: (sequences * heads, parts, D), and logs (sequences * heads, parts)."""

    values: Buffer
    logs: Buffer
    parts: Expr


def decode(layout: CacheLayout, device: Device) -> tirx.PrimFunc:
    """One query token per sequence; its keys are in the pages already."""
    width, heads, shared = layout.head_dim, layout.query_heads, layout.query_heads // layout.key_heads
    batch, rows, threads = b.size("batch"), min(SHARED_HEADS, shared), device.threads
    blocks = -(-shared // rows)
    each = layout.key_heads * blocks

    def body(q: Buffer, pages: Buffer, indptr: Buffer, table: Buffer, last: Buffer, k_start: Buffer, position: Buffer,
             out: Buffer, lse: Buffer, _mode: Expr, _scale: Expr, _theta: Expr, scale: Expr) -> None:  # fmt: skip
        paged, scores = Paged(layout, pages, indptr, table, last), Scores(layout, scale)
        parts = T.max(b.up(table.shape[0] * PAGE, threads), b.integer(1))  # enough for a sequence that has all pages
        some = Some(b.scratch(batch * (heads * width) * parts), b.scratch(batch * heads * parts), parts)
        with b.launch(threads, batch * each, parts) as (block, number, thread):
            sequence, place = T.Bind(b.div(block, each)), T.Bind(b.mod(block, each))
            head = T.Bind(b.div(place, blocks))
            first = T.Bind(head * shared + T.min(b.mod(place, blocks) * rows, shared - rows))
            tokens = paged.tokens(sequence)
            with b.when(number * threads < tokens):
                at, start = T.Bind(b.load(position, sequence)), T.Bind(b.load(k_start, sequence))
                piece = Piece(sequence, first, rows, head, number, tokens, at, start)
                one_piece(device, paged, scores, q, piece, some, thread)
        merge_pieces(device, paged, batch, some, out, lse)

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


def one_piece(device: Device, paged: Paged, scores: Scores, q: Buffer, piece: Piece, some: Some, thread: Expr) -> None:
    """The result of one piece: scores, their softmax by rows, values."""
    width, heads, threads = paged.layout.head_dim, paged.layout.query_heads, device.threads
    queries, weights, room = b.shared(piece.rows * width), b.shared(piece.rows * threads), b.shared(2 * threads)
    pages = b.shared(threads // PAGE, "int32")
    first = T.Bind(piece.sequence * heads + piece.first)
    b.strided(thread, threads, piece.rows * width, lambda i: b.store(queries, i, b.load(q, first * width + i)))
    with b.when(thread < threads // PAGE):
        at = T.min(piece.number * threads + thread * PAGE, piece.tokens - 1)
        b.store(pages, thread, paged.page(piece.sequence, at))
    b.barrier()
    token = T.Bind(piece.number * threads + thread)
    products = b.private(piece.rows)
    for r in range(piece.rows):
        b.store(products, r, b.number(0.0))
    with b.when(token < piece.tokens):
        multiply(paged, piece, queries, pages, thread, products)
    for r in range(piece.rows):
        seen = scores.visible(piece.position, token + piece.start, token < piece.tokens)
        masked = tirx.Select(seen, scores.exponent(b.load(products, r)), b.number(b.MINUS_INFINITY))
        score = T.Bind(masked)
        top = b.combined(score, thread, threads, b.largest, room)
        power = tirx.exp2(score - top)
        weight = T.Bind(tirx.Select(score > b.number(b.MINUS_INFINITY / 2), power, b.number(0.0)))
        total = T.Bind(T.max(b.combined(weight, thread, threads, b.add, room), b.number(1e-37)))
        b.store(weights, r * threads + thread, weight / total)
        with b.when(tirx.EQ(thread, 0)):
            b.store(some.logs, (first + r) * some.parts + piece.number, top + tirx.log2(total))
    b.barrier()
    sum_values(device, paged, piece, weights, pages, first, some, thread)


def multiply(paged: Paged, piece: Piece, queries: Buffer, pages: Buffer, inside: Expr, products: Buffer) -> None:
    """The products of one key of the piece with the queries."""
    width = paged.layout.head_dim
    page = b.load(pages, b.div(inside, PAGE))
    base = T.Bind(key_base(paged.layout, page, piece.head) + b.mod(inside, PAGE))
    count = math.gcd(STEP, width)
    with b.loop(width // count) as step:
        keys = [T.Bind(b.load(paged.pages, base + (step * count + i) * PAGE)) for i in range(count)]
        for r in range(piece.rows):
            part = b.load(products, r)
            for i in range(0, count, 4):
                query = b.fetch(queries, r * width + step * count + i, 4, "float32")
                part = b.chain([part, *(query[j] * keys[i + j] for j in range(4))], b.add)
            b.store(products, r, part)


def sum_values(
    device: Device, paged: Paged, piece: Piece, weights: Buffer, pages: Buffer, first: Expr, some: Some, thread: Expr
) -> None:
    """Sums of the piece's values: groups of threads take turns along the tokens, a thread has four features. Past the
    last token weights are zero, and the last one's values are taken."""
    width, threads, rows = paged.layout.head_dim, device.threads, piece.rows
    across = width // 4
    groups = threads // across
    sums, acc = b.shared(groups * width), b.private(rows * 4)
    for place in range(rows * 4):
        b.store(acc, place, b.number(0.0))
    group, d = T.Bind(b.div(thread, across)), T.Bind(b.mod(thread, across) * 4)
    count = T.Bind(T.min(piece.tokens - piece.number * threads, threads))
    with b.loop(b.up(count, groups * TURNS)) as step:
        tokens = [T.Bind((step * TURNS + i) * groups + group) for i in range(TURNS)]
        values = []
        for token in tokens:
            last = T.Bind(T.min(token, count - 1))
            base = value_base(paged.layout, b.load(pages, b.div(last, PAGE)), piece.head)
            values.append(b.fetch(paged.pages, base + b.mod(last, PAGE) * width + d, 4, "float32"))
        for token, value in zip(tokens, values, strict=True):
            for r in range(rows):
                inside = tirx.And(group < groups, token < count)
                weight = T.Bind(tirx.if_then_else(inside, b.load(weights, r * threads + token), b.number(0.0)))
                for i in range(4):
                    b.store(acc, r * 4 + i, b.load(acc, r * 4 + i) + weight * value[i])
    for r in range(rows):
        with b.when(group < groups):
            for i in range(4):
                b.store(sums, group * width + d + i, b.load(acc, r * 4 + i))
        b.barrier()

        def one(feature: Expr, r: int = r) -> None:
            total = b.chain([b.load(sums, g * width + feature) for g in range(groups)], b.add)
            b.store(some.values, ((first + r) * some.parts + piece.number) * width + feature, total)

        b.strided(thread, threads, width, one)
        b.barrier()


def merge_pieces(device: Device, paged: Paged, batch: Expr, some: Some, out: Buffer, lse: Buffer) -> None:
    """out = the pieces' results, weighed by 2^log as in a softmax over all of them."""
    width, heads, threads = paged.layout.head_dim, paged.layout.query_heads, device.threads
    with b.launch(threads, batch * heads) as (at, _, thread):
        pieces = T.Bind(b.up(paged.tokens(T.Bind(b.div(at, heads))), threads))
        top, total = b.private(1), b.private(1)
        b.store(top, 0, b.number(b.MINUS_INFINITY))
        b.store(total, 0, b.number(1e-37))
        with b.loop(pieces) as number:
            b.store(top, 0, T.max(b.load(top, 0), b.load(some.logs, at * some.parts + number)))

        def weight(number: Expr) -> Expr:
            return T.Bind(tirx.exp2(b.load(some.logs, at * some.parts + number) - b.load(top, 0)))

        with b.loop(pieces) as number:
            b.store(total, 0, b.load(total, 0) + weight(number))

        def one(d: Expr) -> None:
            value = b.private(1)
            b.store(value, 0, b.number(0.0))
            with b.loop(pieces) as number:
                part = b.load(some.values, (at * some.parts + number) * width + d)
                b.store(value, 0, b.load(value, 0) + weight(number) * part)
            b.store(out, at * width + d, b.load(value, 0) / b.load(total, 0))

        b.strided(thread, threads, width, one)
        with b.when(tirx.EQ(thread, 0)):
            b.store(lse, at, b.load(top, 0) + tirx.log2(b.load(total, 0)))
