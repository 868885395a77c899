"""Rotation of queries and keys on a GPU, where the cache rotates nothing. Axes: M rows, D features of a head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.ir import T
from llm_build.ops.rotary import RotaryLabel


def rotary(label: RotaryLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """Queries and keys rotated to their positions; values copied. A block for each row and head."""
    queries, keys, half = label.query_heads, label.key_heads, len(label.inv_freq)
    rows, heads, threads, width = b.size("rows"), queries + 2 * keys, traits.threads, 2 * half

    def body(qkv: Buffer, positions: Buffer, y: Buffer) -> None:
        with b.launch(threads, rows, b.i32(heads)) as (row, head, thread):
            frequency = b.shared(half)
            store_frequencies(frequency, label.inv_freq, thread, threads)
            start = T.Bind((row * heads + head) * width)
            b.barrier()
            position = T.Bind(tirx.Cast("float32", b.load(positions, row)))

            def feature(place: Expr) -> Expr:
                return b.load(qkv, start + place)

            def turn(pair: Expr) -> None:
                angle = T.Bind(position * b.load(frequency, pair))
                store_turned(qkv, y, start, pair, half, angle, feature, head < queries + keys)

            b.strided(thread, threads, half, turn)

    whole = (rows, heads, width)
    return b.kernel([Arg("qkv", whole), Arg("positions", (rows,), "int32", offset=True), Arg("y", whole)], body)


def store_frequencies(frequency: Buffer, values: Sequence[float], thread: Expr, threads: int) -> None:
    """Constants of the library into shared memory; a barrier has to follow."""
    for pair, value in enumerate(values):
        with b.when(tirx.EQ(thread, pair % threads)):
            b.store(frequency, pair, b.f32(value))


def store_turned(
    qkv: Buffer,
    y: Buffer,
    start: Expr,
    pair: Expr,
    half: int,
    angle: Expr,
    feature: Callable[[Expr], Expr],
    rotated: Expr,
) -> None:
    """Features ``pair`` and ``pair`` + ``half`` of the head at ``start``: turned by ``angle``, or (not ``rotated``) as
    they are in ``qkv``."""
    sine, cosine = b.sin_cos(angle)
    low, high = feature(pair), feature(pair + half)
    for place, value in ((pair, low * cosine - high * sine), (pair + half, high * cosine + low * sine)):
        at = T.Bind(start + place)
        b.store(y, at, tirx.if_then_else(rotated, value, b.load(qkv, at)))
