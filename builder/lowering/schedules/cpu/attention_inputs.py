"""What attention on the CPU reads: rows of queries, and the keys and values of one head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm_build.lowering.schedules.cpu.cache import PAGE
from llm_build.lowering.schedules.cpu.vector import Buffer, Expr


@dataclass(frozen=True, slots=True)
class Keys:
    """Where the keys and values of one head are. ``turned(page)``: start of its (D, PAGE) keys in ``keys``;
    ``value(page)``: start of its values in ``values``, one token every ``stride``; ``pages``, ``tokens``: how many;
    ``most_pages``: at most so many in any sequence, known when the kernel starts (TVM moves allocations to its top).
    ``place(page)``: the first token of a page; pages are numbered from 0, but some may be left out (window.py)."""

    keys: Buffer
    values: Buffer
    turned: Callable[[Expr], Expr]
    value: Callable[[Expr], Expr]
    stride: int
    pages: Expr
    tokens: Expr
    most_pages: Expr
    place: Callable[[Expr], Expr] = lambda page: page * PAGE


@dataclass(frozen=True, slots=True)
class Queries:
    """ROWS rows: the start of each in q (and in the output), its place in lse, how many tokens it sees, and whether it
    is real (a row past the end repeats the last one). With a window a row sees the first ``sinks`` tokens and those
    from ``low`` on."""

    starts: Sequence[Expr]
    places: Sequence[Expr]
    seen: Sequence[Expr]
    real: Sequence[Expr | None]
    low: Sequence[Expr] | None = None
    sinks: Expr | None = None
