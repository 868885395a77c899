"""Attention through a sliding window with attention sinks: which tokens a query sees, and which pages hold them.

Every token stays in the cache at its own position, so rotary angles are those of full attention, and a window costs no
more than the pages it covers. With W = window and S = sinks, the token at position p sees the tokens j < S and those
with p - (W - S) < j <= p (transformers' sliding window for S = 0; the sinks of Xiao et al. 2023, arXiv:2309.17453, at
their own positions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tvm import tirx

from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.attention_inputs import Keys, Queries
from llm_build.lowering.schedules.cpu.cache import PAGE
from llm_build.lowering.schedules.cpu.vector import Expr
from llm_build.lowering.schedules.ir import T
from llm_build.ops.kv_cache import CacheLayout, windowed

EVERYTHING = 1 << 30  # tokens


@dataclass(frozen=True, slots=True)
class View:
    """What one layer sees of keys that start at position ``start``; ``encoded`` says whether the layer has the window
    (ops/kv_cache.py)."""

    layout: CacheLayout
    encoded: Expr
    start: Expr

    def narrowed(self, queries: Queries, keys: Keys, positions: Sequence[Expr]) -> tuple[Queries, Keys]:
        """Rows at ``positions`` (ascending), and the pages that any of them sees."""
        reach, sinks = self.layout.window - self.layout.sinks, self.layout.sinks
        start = T.Bind(tirx.Cast("int64", self.start))
        near, far = (tirx.const(count, "int64") for count in (reach, EVERYTHING))
        far = T.Bind(tirx.if_then_else(windowed(self.encoded), near, far))
        low = [T.Bind(tirx.Cast("int64", position) - far + 1 - start) for position in positions]
        kept = T.Bind(T.max(tirx.const(sinks, "int64") - start, tirx.const(0, "int64"))) if sinks else None
        return replace(queries, low=low, sinks=kept), _some_pages(keys, low[0], kept)


def _some_pages(keys: Keys, low: Expr, sinks: Expr | None) -> Keys:
    """The pages of the first ``sinks`` tokens and those from the token ``low`` on."""
    zero = tirx.const(0, "int64")
    lead = zero if sinks is None else T.Bind(T.min(tirx.floordiv(sinks + (PAGE - 1), PAGE), keys.pages))
    first = T.min(T.max(tirx.floordiv(T.max(low, zero), PAGE), lead), keys.pages)
    skipped = T.Bind(first - lead)

    def number(page: Expr) -> Expr:
        return page + (skipped if sinks is None else tirx.if_then_else(page >= lead, skipped, zero))

    return replace(
        keys,
        turned=lambda page: keys.turned(number(page)),
        value=lambda page: keys.value(number(page)),
        place=lambda page: keys.place(number(page)),
        pages=T.Bind(keys.pages - skipped),
    )


def visibility(queries: Queries, row: int, place: Expr, lanes: int) -> Callable[[int], Expr]:
    """visible(first): which of ``lanes`` tokens from place + first on the row sees."""

    def bound(token: Expr) -> Expr:
        return T.Bind(tirx.Cast("int32", token - place))

    end = bound(queries.seen[row])
    low = bound(queries.low[row]) if queries.low is not None else None
    sinks = bound(queries.sinks) if queries.sinks is not None else None

    def visible(first: int) -> Expr:
        inside = tirx.Ramp(tirx.const(first, "int32"), 1, lanes) if lanes > 1 else tirx.const(first, "int32")
        seen = inside < v.splat(end, lanes)
        if low is None:
            return seen
        near = inside >= v.splat(low, lanes)
        return tirx.And(seen, near if sinks is None else tirx.Or(near, inside < v.splat(sinks, lanes)))

    return visible
