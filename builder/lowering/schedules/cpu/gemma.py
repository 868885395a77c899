"""Gemma's norms, scales and caps on the CPU. Axes: M rows, H features, D features of a head."""

from __future__ import annotations

from tvm import tirx

from llm_build.lowering.schedules.cpu import cache
from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.elementwise import COSTLY, each
from llm_build.lowering.schedules.cpu.norms import inverse_rms
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from llm_build.lowering.schedules.ir import T
from llm_build.ops.gemma import GemmaNormLabel, HeadNormRotaryLabel, ScaledLabel, SoftCapLabel
from llm_build.ops.kv_cache import CacheLayout, rope_frequencies


def gemma_norm(label: GemmaNormLabel, isa: Isa) -> tirx.PrimFunc:
    """x / sqrt(mean(x^2) + eps) * (1 + weight) (+ residual)."""
    width, dtype, rows = label.width, label.dtype, v.size("rows")
    residual = [Arg("residual", (rows, width))] if label.residual else []

    def body(x: Buffer, *rest: Buffer) -> None:
        weight, y = rest[-2:]

        def one(row: Expr) -> None:
            scale = T.Bind(inverse_rms(x, row * width, width, label.eps, isa.lanes))

            def scaled(start: Expr, count: int) -> None:
                at = row * width + start
                gain = v.splat(1.0, count) + v.to_float32(v.load(weight, start, count), dtype, count, isa)
                value = v.load(x, at, count) * v.splat(scale, count) * gain
                v.store(y, at, value + v.load(rest[0], at, count) if residual else value, count)

            v.for_vectors(width, isa.lanes, scaled)

        v.for_rows(rows, width * 2, one)

    args = [Arg("x", (rows, width)), *residual, Arg("weight", (width,), dtype), Arg("y", (rows, width))]
    return v.kernel(args, body)


def scaled(label: ScaledLabel, isa: Isa) -> tirx.PrimFunc:
    """x * factor."""

    def value(x: Expr, count: int) -> Expr:
        return x * v.splat(float(label.factor), count)

    return each(label.width, 1, value, isa)


def soft_cap(label: SoftCapLabel, isa: Isa) -> tirx.PrimFunc:
    """cap * tanh(x / cap)."""

    def value(x: Expr, count: int) -> Expr:
        return v.tanh(x * v.splat(1.0 / label.cap, count), count) * v.splat(float(label.cap), count)

    return each(label.width, COSTLY, value, isa)


def head_norm_rotary(label: HeadNormRotaryLabel, isa: Isa) -> tirx.PrimFunc:
    """Queries and keys normed per head and rotated to their positions; values copied."""
    width, queries, keys = label.width, label.query_heads, label.key_heads
    rows, heads, dtype = v.size("rows"), queries + 2 * keys, label.dtype
    plain = rope_frequencies(label.theta, width)
    stretched = tuple(frequency / label.factor for frequency in plain)
    layout = CacheLayout(1, queries, keys, width, width, stretched)

    def body(qkv: Buffer, positions: Buffer, q_weight: Buffer, k_weight: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            sine, cosine, normed = v.scratch(width // 2), v.scratch(width // 2), v.scratch(width)
            cache.angles(layout, isa, T.Bind(tirx.Cast("float32", v.load(positions, row))), sine, cosine)
            for weight, first, count in ((q_weight, 0, queries), (k_weight, queries, keys)):
                with v.loop(count) as head:
                    at = T.Bind((row * heads + first + head) * width)
                    scale = T.Bind(inverse_rms(qkv, at, width, label.eps, isa.lanes))
                    norm_head(qkv, at, scale, weight, normed)
                    cache.rotate(layout, isa, normed, tirx.const(0, "int64"), y, at, sine, cosine)
            values = T.Bind((row * heads + queries + keys) * width)
            cache.copy(qkv, values, y, values, keys * width, isa)

        def norm_head(x: Buffer, at: Expr, scale: Expr, weight: Buffer, out: Buffer) -> None:
            def some(start: Expr, count: int) -> None:
                gain = v.splat(1.0, count) + v.to_float32(v.load(weight, start, count), dtype, count, isa)
                v.store(out, start, v.load(x, at + start, count) * v.splat(scale, count) * gain, count)

            v.for_vectors(width, isa.lanes, some)

        v.for_rows(rows, heads * width * 4, one)

    whole = (rows, heads, width)
    return v.kernel(
        [
            Arg("qkv", whole),
            Arg("positions", (rows,), "int32", offset=True),
            Arg("q_weight", (width,), dtype),
            Arg("k_weight", (width,), dtype),
            Arg("y", whole),
        ],
        body,
    )
