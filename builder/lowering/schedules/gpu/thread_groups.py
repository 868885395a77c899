"""Threads of a block on a GPU that share the pages of one key head, and a softmax over them.

A team is made of groups, and a group of one thread for each four features of a head. Each group has a running softmax
of its own in base 2 (Dao et al. 2022, arXiv:2205.14135); in the end they are joined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tvm import tirx

from builder.lowering.schedules.gpu import block as b
from builder.lowering.schedules.gpu.block import Buffer, Expr, GpuTraits
from builder.lowering.schedules.gpu.cache import PAGE
from builder.lowering.schedules.ir import T

MOST_GROUPS = 16  # of a block: narrow heads leave some threads without work
TOGETHER = 4  # rows in the block's memory at a time, at most
LEAST_TOTAL = 1e-37  # of weights: a row that sees no token has zeros as its result


@dataclass(frozen=True, slots=True)
class Team:
    """How the ``threads`` of a block share ``rows`` query heads of ``width`` features: ``groups`` of ``members``. A
    member has four tokens of a page's keys, and of these each ``slices``-th feature, ``features`` in all; of its values
    four features of all tokens. So both are read as they lie. ``together``: rows in the block's memory at a time."""

    width: int
    rows: int
    threads: int
    members: int
    groups: int
    slices: int
    features: int
    together: int

    @property
    def room(self) -> int:
        """Values of the block's memory that products with keys need, and later the groups' sums."""
        return self.together * self.groups * max(self.slices * PAGE, self.width)

    @property
    def padded(self) -> int:
        """Features of a query in the block's memory."""
        return self.slices * self.features


@dataclass(frozen=True, slots=True)
class Member:
    """A thread, its place, and what it has of each row: the ``top`` of its group's exponents, the ``total`` of the
    weights 2^(exponent - top), and four features of the ``sums`` of values with them."""

    thread: Expr
    group: Expr
    place: Expr
    top: Buffer
    total: Buffer
    sums: Buffer


def team_of(width: int, rows: int, traits: GpuTraits) -> Team:
    members = max(width // 4, 4)
    groups, slices = min(traits.threads // members, MOST_GROUPS), members // 4
    team = Team(width, rows, traits.threads, members, groups, slices, -(-width // slices), min(rows, TOGETHER))
    others = rows * (team.padded + groups * (PAGE + 2))
    while team.together > 1 and 4 * (team.room + others) > traits.shared_bytes:
        team = replace(team, together=team.together // 2)
    return team


def working(team: Team, me: Member, members: int) -> Expr:
    """Whether a thread is one of the first members of a group."""
    in_group = True if team.groups * team.members == team.threads else me.group < team.groups
    one_of_them = True if members == team.members else me.place < members
    return tirx.And(in_group, one_of_them)


def member_of(team: Team, thread: Expr) -> Member:
    me = Member(
        thread, T.Bind(b.div(thread, team.members)), T.Bind(b.mod(thread, team.members)),
        b.local(team.rows), b.local(team.rows), b.local(team.rows * 4),
    )  # fmt: skip
    for r in range(team.rows):
        b.store(me.top, r, b.f32(b.MINUS_INFINITY))
        b.store(me.total, r, b.f32(0.0))
        for i in range(4):
            b.store(me.sums, r * 4 + i, b.f32(0.0))
    return me


def join_groups(team: Team, me: Member, room: Buffer, put: Callable[[Expr, Expr, Expr, Expr], None]) -> None:
    """What all groups have, as in a softmax over all of it: put(row, d, value, lse of the row)."""
    tops, totals = b.shared(team.rows * team.groups), b.shared(team.rows * team.groups)
    with b.when(working(team, me, 1)):
        for r in range(team.rows):
            b.store(tops, r * team.groups + me.group, b.load(me.top, r))
            b.store(totals, r * team.groups + me.group, b.load(me.total, r))
    for first in range(0, team.rows, team.together):
        count = min(team.together, team.rows - first)
        with b.when(working(team, me, team.width // 4)):
            for r in range(count):
                line = (r * team.groups + me.group) * team.width
                b.copy(me.sums, (first + r) * 4, room, line + me.place * 4, 4)
        b.barrier()

        def one(i: Expr, first: int = first) -> None:
            r, d = T.Bind(b.div(i, team.width)), T.Bind(b.mod(i, team.width))
            places = [(first + r) * team.groups + g for g in range(team.groups)]
            top = T.Bind(b.reduce([b.load(tops, place) for place in places], b.maximum))
            shares = [T.Bind(tirx.exp2(b.load(tops, place) - top)) for place in places]
            weights = [share * b.load(totals, place) for share, place in zip(shares, places, strict=True)]
            total = T.Bind(T.max(b.reduce(weights, b.add), b.f32(LEAST_TOTAL)))
            line = r * (team.groups * team.width) + d
            values = [share * b.load(room, line + g * team.width) for g, share in enumerate(shares)]
            put(first + r, d, b.reduce(values, b.add) / total, top + tirx.log2(total))

        b.strided(me.thread, team.threads, count * team.width, one)
        b.barrier()  # the last one for PoCL 3.1: conditions behind the last barrier inside of one are lost
