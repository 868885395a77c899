"""Threads of a block on a GPU that share the pages of one key head, and a softmax over them.

A group has a thread for each four features of a head. Each group has a running softmax of its own in base 2 (Dao et al.
2022, arXiv:2205.14135); in the end they are combined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.gpu.cache import PAGE
from llm_build.lowering.schedules.ir import T

MAX_GROUPS = 16  # of a block: narrow heads leave some threads without work
ROWS_IN_SMEM = 4  # at a time, at most
MIN_TOTAL = 1e-37  # of weights: a row that sees no token has zeros as its result


@dataclass(frozen=True, slots=True)
class ThreadGroups:
    """How the ``threads`` of a block share ``rows`` query heads of ``width`` features. A thread of a group has four
    tokens of a page's keys, and of these each ``slices``-th feature, ``features`` in all; of its values four features
    of all tokens. So both are read as they lie. ``rows_in_smem``: rows in the block's memory at a time."""

    width: int
    rows: int
    threads: int
    threads_per_group: int
    groups: int
    slices: int
    features: int
    rows_in_smem: int

    @property
    def smem_values(self) -> int:
        """Values of the block's memory that products with keys need, and later the groups' sums."""
        return self.rows_in_smem * self.groups * max(self.slices * PAGE, self.width)

    @property
    def padded_width(self) -> int:
        """Features of a query in the block's memory."""
        return self.slices * self.features


@dataclass(frozen=True, slots=True)
class ThreadState:
    """A thread, its place, and what it has of each row: the ``top`` of its group's exponents, the ``total`` of the
    weights 2^(exponent - top), and four features of the ``sums`` of values with them."""

    thread: Expr
    group: Expr
    place: Expr
    top: Buffer
    total: Buffer
    sums: Buffer


def grouping_of(width: int, rows: int, traits: GpuTraits) -> ThreadGroups:
    threads_per_group = max(width // 4, 4)
    groups, slices = min(traits.threads // threads_per_group, MAX_GROUPS), threads_per_group // 4
    grouping = ThreadGroups(
        width, rows, traits.threads, threads_per_group, groups, slices, -(-width // slices), min(rows, ROWS_IN_SMEM)
    )
    others = rows * (grouping.padded_width + groups * (PAGE + 2))
    while grouping.rows_in_smem > 1 and 4 * (grouping.smem_values + others) > traits.shared_bytes:
        grouping = replace(grouping, rows_in_smem=grouping.rows_in_smem // 2)
    return grouping


def is_active(grouping: ThreadGroups, own: ThreadState, first: int) -> Expr:
    """Whether a thread is one of the ``first`` ones of a group."""
    in_group = True if grouping.groups * grouping.threads_per_group == grouping.threads else own.group < grouping.groups
    one_of_them = True if first == grouping.threads_per_group else own.place < first
    return tirx.And(in_group, one_of_them)


def initial_state(grouping: ThreadGroups, thread: Expr) -> ThreadState:
    own = ThreadState(
        thread, T.Bind(b.div(thread, grouping.threads_per_group)), T.Bind(b.mod(thread, grouping.threads_per_group)),
        b.local(grouping.rows), b.local(grouping.rows), b.local(grouping.rows * 4),
    )  # fmt: skip
    for r in range(grouping.rows):
        b.store(own.top, r, b.f32(b.MINUS_INFINITY))
        b.store(own.total, r, b.f32(0.0))
        for i in range(4):
            b.store(own.sums, r * 4 + i, b.f32(0.0))
    return own


def combine_groups(
    grouping: ThreadGroups, own: ThreadState, smem: Buffer, store: Callable[[Expr, Expr, Expr, Expr], None]
) -> None:
    """What all groups have, as in a softmax over all of it: put(row, d, value, lse of the row)."""
    tops, totals = b.shared(grouping.rows * grouping.groups), b.shared(grouping.rows * grouping.groups)
    with b.when(is_active(grouping, own, 1)):
        for r in range(grouping.rows):
            b.store(tops, r * grouping.groups + own.group, b.load(own.top, r))
            b.store(totals, r * grouping.groups + own.group, b.load(own.total, r))
    for first in range(0, grouping.rows, grouping.rows_in_smem):
        count = min(grouping.rows_in_smem, grouping.rows - first)
        with b.when(is_active(grouping, own, grouping.width // 4)):
            for r in range(count):
                line = (r * grouping.groups + own.group) * grouping.width
                b.copy(own.sums, (first + r) * 4, smem, line + own.place * 4, 4)
        b.barrier()

        def one(i: Expr, first: int = first) -> None:
            r, d = T.Bind(b.div(i, grouping.width)), T.Bind(b.mod(i, grouping.width))
            places = [(first + r) * grouping.groups + g for g in range(grouping.groups)]
            top = T.Bind(b.reduce([b.load(tops, place) for place in places], b.maximum))
            shares = [T.Bind(tirx.exp2(b.load(tops, place) - top)) for place in places]
            weights = [share * b.load(totals, place) for share, place in zip(shares, places, strict=True)]
            total = T.Bind(T.max(b.reduce(weights, b.add), b.f32(MIN_TOTAL)))
            line = r * (grouping.groups * grouping.width) + d
            values = [share * b.load(smem, line + g * grouping.width) for g, share in enumerate(shares)]
            store(first + r, d, b.reduce(values, b.add) / total, top + tirx.log2(total))

        b.strided(own.thread, grouping.threads, count * grouping.width, one)
        b.barrier()  # the last one for PoCL 3.1: conditions behind the last barrier inside of one are lost
