"""Rotation of queries and keys on the CPU, where the cache rotates nothing. Axes: M rows, D features of a head."""

from __future__ import annotations

from tvm import tirx

from llm_build.lowering.schedules.cpu import cache
from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from llm_build.lowering.schedules.ir import T
from llm_build.ops.kv_cache import CacheLayout
from llm_build.ops.rotary import RotaryLabel


def rotary(label: RotaryLabel, isa: Isa) -> tirx.PrimFunc:
    """Queries and keys rotated to their positions; values copied."""
    queries, keys, half = label.query_heads, label.key_heads, len(label.inv_freq)
    rows, heads, width = v.size("rows"), queries + 2 * keys, 2 * half
    layout = CacheLayout(1, queries, keys, width, width, label.inv_freq)

    def body(qkv: Buffer, positions: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            sine, cosine = v.scratch(half), v.scratch(half)
            cache.angles(layout, isa, T.Bind(tirx.Cast("float32", v.load(positions, row))), sine, cosine)
            with v.loop(queries + keys) as head:
                at = T.Bind((row * heads + head) * width)
                cache.rotate(layout, isa, qkv, at, y, at, sine, cosine)
            values = T.Bind((row * heads + queries + keys) * width)
            cache.copy(qkv, values, y, values, keys * width, isa)

        v.for_rows(rows, heads * width * 4, one)

    whole = (rows, heads, width)
    return v.kernel([Arg("qkv", whole), Arg("positions", (rows,), "int32", offset=True), Arg("y", whole)], body)
