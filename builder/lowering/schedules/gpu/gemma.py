"""Gemma's norms, scales and caps on a GPU. Axes: M rows, H features, D features of a head."""

from __future__ import annotations

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.gpu.elementwise import mapped
from llm_build.lowering.schedules.gpu.norms import inverse_rms, scaled_rows
from llm_build.lowering.schedules.gpu.rotary import store_frequencies, store_turned
from llm_build.lowering.schedules.ir import T
from llm_build.ops.gemma import GemmaNormLabel, HeadNormRotaryLabel, ScaledLabel, SoftCapLabel
from llm_build.ops.kv_cache import rope_frequencies


def gemma_norm(label: GemmaNormLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """x / sqrt(mean(x^2) + eps) * (1 + weight) (+ residual)."""
    return scaled_rows(label, traits, lambda weight: weight + b.f32(1.0))


def scaled(label: ScaledLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """x * factor."""
    return mapped(label.width, lambda x: x * b.f32(float(label.factor)), traits)


def soft_cap(label: SoftCapLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """cap * tanh(x / cap)."""
    cap = float(label.cap)
    return mapped(label.width, lambda x: b.tanh(x * b.f32(1.0 / cap)) * b.f32(cap), traits)


def head_norm_rotary(label: HeadNormRotaryLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """Gemma 3: queries and keys normed per head and rotated to their positions; values copied. A block for each row and
    head; the normed head goes through shared memory."""
    width, queries, keys, dtype = label.width, label.query_heads, label.key_heads, label.dtype
    rows, heads, threads, half = b.size("rows"), queries + 2 * keys, traits.threads, width // 2
    stretched = [value / label.factor for value in rope_frequencies(label.theta, width)]

    def body(qkv: Buffer, positions: Buffer, q_weight: Buffer, k_weight: Buffer, y: Buffer) -> None:
        with b.launch(threads, rows, b.i32(heads)) as (row, head, thread):
            normed, frequency = b.shared(width), b.shared(half)
            store_frequencies(frequency, stretched, thread, threads)
            start = T.Bind((row * heads + head) * width)
            scale = inverse_rms(qkv, start, width, label.eps, traits, thread)

            def norm(d: Expr) -> None:
                weight = tirx.if_then_else(head < queries, b.load(q_weight, d), b.load(k_weight, d))
                gain = b.to_float32(weight, dtype) + b.f32(1.0)
                b.store(normed, d, b.load(qkv, start + d) * scale * gain)

            b.strided(thread, threads, width, norm)
            b.barrier()
            position = T.Bind(tirx.Cast("float32", b.load(positions, row)))

            def turn(pair: Expr) -> None:
                angle = T.Bind(position * b.load(frequency, pair))
                store_turned(qkv, y, start, pair, half, angle, lambda d: b.load(normed, d), head < queries + keys)

            b.strided(thread, threads, half, turn)

    whole = (rows, heads, width)
    return b.kernel(
        [
            Arg("qkv", whole),
            Arg("positions", (rows,), "int32", offset=True),
            Arg("q_weight", (width,), dtype),
            Arg("k_weight", (width,), dtype),
            Arg("y", whole),
        ],
        body,
    )
