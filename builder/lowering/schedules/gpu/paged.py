"""What all attention kernels read: the page table, and which keys a query sees with what weight.

Signatures are those that TVM's paged KV cache calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, Scalar
from llm_build.lowering.schedules.gpu.cache import PAGE
from llm_build.lowering.schedules.ir import T
from llm_build.ops.kv_cache import CacheLayout, scale_of, sees_all

ROTARY = (Scalar("rotary_mode", "int32"), Scalar("rope_scale", "float32"), Scalar("rope_theta", "float32"))


@dataclass(frozen=True, slots=True)
class Paged:
    """The page table as the runtime passes it."""

    layout: CacheLayout
    pages: Buffer
    indptr: Buffer
    table: Buffer
    last: Buffer

    def count(self, sequence: Expr) -> Expr:
        """How many pages a sequence has."""
        return T.Bind(b.load(self.indptr, sequence + 1) - b.load(self.indptr, sequence))

    def tokens(self, sequence: Expr) -> Expr:
        """How many tokens a sequence has in its pages."""
        count = self.count(sequence)
        return T.Bind(tirx.if_then_else(count > 0, (count - 1) * PAGE + b.load(self.last, sequence), b.i32(0)))

    def page(self, sequence: Expr, token: Expr) -> Expr:
        return T.Bind(b.load(self.table, b.load(self.indptr, sequence) + b.div(token, PAGE)))


def table_args(sequences: Any) -> list[Arg]:
    return [
        Arg("page_indptr", (b.size("page_indptr_size"),), "int32", offset=True),
        Arg("page_table", (b.size("page_table_size"),), "int32", offset=True),
        Arg("last_page_len", (sequences,), "int32", offset=True),
    ]


@dataclass(frozen=True, slots=True)
class Scores:
    """How products of queries and keys become exponents of 2, and which keys a query sees.

    ``encoded`` is the layer's scale, and whether it looks through the cache's window (ops/kv_cache.py).
    """

    layout: CacheLayout
    encoded: Expr

    def exponent(self, product: Expr) -> Expr:
        size = scale_of(self.encoded, self.layout)
        if not self.layout.soft_cap:
            return product * (size * b.f32(b.LOG2_E))
        capped = b.tanh(product * (size * b.f32(1.0 / self.layout.soft_cap)))
        return capped * b.f32(self.layout.soft_cap * b.LOG2_E)

    def sight(self, position: Buffer, start: Buffer, sequence: Expr, tokens: Expr) -> Callable[[Expr], Expr]:
        """Whether the only query of a sequence sees a token of its pages; ``start``: where these begin."""
        if not self.layout.window:
            return lambda token: token < tokens
        at, first = T.Bind(b.load(position, sequence)), T.Bind(b.load(start, sequence))
        return lambda token: self.visible(at, token + first, token < tokens)

    def visible(self, position: Expr, key: Expr, seen: Expr) -> Expr:
        """``key`` and ``position`` count from the sequence's start; ``seen``: whether it sees it without a window."""
        if not self.layout.window:
            return seen
        near = position - key < self.layout.window - self.layout.sinks
        if self.layout.sinks:
            near = tirx.Or(near, key < self.layout.sinks)
        return tirx.And(seen, tirx.Or(sees_all(self.encoded), near))
