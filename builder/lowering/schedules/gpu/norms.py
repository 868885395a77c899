"""Norms on a GPU: a block of threads for each row, or for each run of a row. Axes: M rows, H features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.ir import T
from llm_build.ops.norms import LayerNormLabel, QKNormLabel, RMSNormLabel

MAX_OWN_FEATURES = 32  # features of a row that a thread keeps, at most


def rms_norm(label: RMSNormLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """x / sqrt(mean(x^2) + eps) * weight (+ residual)."""
    return scaled_rows(label, traits, lambda weight: weight)


def scaled_rows(label: RMSNormLabel, traits: GpuTraits, gain: Callable[[Expr], Expr]) -> tirx.PrimFunc:
    width, dtype, rows, threads = label.width, label.dtype, b.size("rows"), traits.threads
    residual = [Arg("residual", (rows, width))] if label.residual else []

    def body(x: Buffer, *rest: Buffer) -> None:
        weight, y = rest[-2:]
        with b.launch(threads, rows) as (row, _, thread):
            own, start = RowSlice(traits, thread, width), T.Bind(row * width)
            gains = partial(_weight_at, weight, dtype)
            _scale_row(own, x, y, start, label.eps, lambda h: gain(gains(h)), rest[0] if residual else None)

    args = [Arg("x", (rows, width)), *residual, Arg("weight", (width,), dtype), Arg("y", (rows, width))]
    return b.kernel(args, body)


Value = Callable[[Any], Expr]  # a feature, or which of the thread's it is -> its value


@dataclass(frozen=True, slots=True)
class RowSlice:
    """The features of a row of ``width`` that a thread of a block works on: every so many, from its own number on. Of
    rows up to OWN features a thread they are in its registers, each read once, all asked for at once."""

    traits: GpuTraits
    thread: Expr
    width: int

    @property
    def count(self) -> int:
        return -(-self.width // self.traits.threads)

    @property
    def in_registers(self) -> bool:
        return self.count <= MAX_OWN_FEATURES

    def feature(self, i: int) -> Expr:
        return T.min(self.thread + i * self.traits.threads, self.width - 1)

    def is_inside(self, i: int) -> Expr | None:
        whole = (i + 1) * self.traits.threads <= self.width
        return None if whole else self.thread + i * self.traits.threads < self.width

    def read(self, value: Value) -> Value:
        """``value`` of the features, read here if there is room for them, or else whenever it is asked for."""
        if not self.in_registers:
            return value
        values = [T.Bind(value(T.Bind(self.feature(i)))) for i in range(self.count)]
        return lambda i: values[i]

    def total(self, value: Value) -> Expr:
        """The sum over the row, in all threads."""
        if not self.in_registers:
            return summed(value, self.width, self.traits, self.thread)
        terms = [value(i) for i in range(self.count)]
        masks = [self.is_inside(i) for i in range(self.count)]
        terms = [
            term if mask is None else tirx.Select(mask, term, b.f32(0.0))
            for term, mask in zip(terms, masks, strict=True)
        ]
        return b.block_sum(self.traits, T.Bind(b.reduce(terms, b.add)), self.thread)

    def write(self, y: Buffer, start: Expr, value: Value) -> None:
        if not self.in_registers:
            b.strided(self.thread, self.traits.threads, self.width, lambda h: b.store(y, start + h, value(h)))
            return
        for i in range(self.count):
            at = start + self.thread + i * self.traits.threads
            b.guarded(self.is_inside(i), lambda i=i, at=at: b.store(y, at, value(i)))  # type: ignore[misc]


def _scale_row(
    own: RowSlice, x: Buffer, y: Buffer, start: Expr, eps: float, gain: Value, residual: Buffer | None = None
) -> None:
    """The row of x from ``start``, over the root of its mean square, times its gains (+ residual), into y."""
    gains = own.read(gain)
    own.traits.wait()
    values = own.read(lambda h: b.load(x, start + h))
    added = None if residual is None else own.read(lambda h: b.load(residual, start + h))
    scale = inverse_root(own.total(lambda h: values(h) * values(h)), own.width, eps)

    def one(h: Any) -> Expr:
        value = values(h) * scale * gains(h)
        return value if added is None else value + added(h)

    own.write(y, start, one)


def _weight_at(weight: Buffer, dtype: str, h: Expr) -> Expr:
    return b.to_float32(b.load(weight, h), dtype)


def inverse_rms(x: Buffer, start: Expr, width: int, eps: float, traits: GpuTraits, thread: Expr) -> Expr:
    """1 / sqrt(mean of squares + eps) of ``width`` values from ``start``."""

    def square(h: Expr) -> Expr:
        value = T.Bind(b.load(x, start + h))
        return value * value

    return inverse_root(summed(square, width, traits, thread), width, eps)


def inverse_root(squares: Expr, width: int, eps: float) -> Expr:
    return T.Bind(b.f32(1.0) / tirx.sqrt(squares / b.f32(float(width)) + b.f32(eps)))


def summed(term: Callable[[Expr], Expr], width: int, traits: GpuTraits, thread: Expr) -> Expr:
    """The sum of term(h) for h < width, in all threads of a block."""
    total = b.local(1)
    b.store(total, 0, b.f32(0.0))
    b.strided(thread, traits.threads, width, lambda h: b.store(total, 0, b.load(total, 0) + term(h)))
    return b.block_sum(traits, b.load(total, 0), thread)


def layer_norm(label: LayerNormLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """(x - mean) / sqrt(variance + eps) * weight + bias; the variance is that of the centered values."""
    width, dtype, rows, threads = label.width, label.dtype, b.size("rows"), traits.threads

    def body(x: Buffer, weight: Buffer, bias: Buffer, y: Buffer) -> None:
        with b.launch(threads, rows) as (row, _, thread):
            own, start = RowSlice(traits, thread, width), T.Bind(row * width)
            gains, shifts = (own.read(partial(_weight_at, of, dtype)) for of in (weight, bias))
            traits.wait()
            values = own.read(lambda h: b.load(x, start + h))
            mean = T.Bind(own.total(values) / b.f32(float(width)))
            squares = own.total(lambda h: (values(h) - mean) * (values(h) - mean))
            scale = inverse_root(squares, width, label.eps)
            own.write(y, start, lambda h: (values(h) - mean) * scale * gains(h) + shifts(h))

    whole, vector = (rows, width), (width,)
    return b.kernel([Arg("x", whole), Arg("weight", vector, dtype), Arg("bias", vector, dtype), Arg("y", whole)], body)


def qk_norm(label: QKNormLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """RMS norm of each run of q and of k features; v features are copied."""
    features, dtype, rows, threads = label.features, label.dtype, b.size("rows"), traits.threads
    widths, runs = (label.q_width, label.k_width), (label.q_runs, label.k_runs)
    starts = (0, runs[0] * widths[0], runs[0] * widths[0] + runs[1] * widths[1])

    def body(x: Buffer, q_weight: Buffer, k_weight: Buffer, y: Buffer) -> None:
        for first, width, count, weight in zip(starts, widths, runs, (q_weight, k_weight), strict=False):
            norm_runs(x, weight, y, first, width, count)
        rest = features - starts[2]

        def move(index: Expr) -> None:
            at = T.Bind(b.div(index, rest) * features + starts[2] + b.mod(index, rest))
            b.store(y, at, b.load(x, at))

        b.for_each(traits, rows * rest, move)

    def norm_runs(x: Buffer, weight: Buffer, y: Buffer, first: int, width: int, count: int) -> None:
        with b.launch(threads, rows, b.i32(count)) as (row, run, thread):
            start = T.Bind(row * features + first + run * width)
            _scale_row(RowSlice(traits, thread, width), x, y, start, label.eps, partial(_weight_at, weight, dtype))

    whole = (rows, features)
    weights = [Arg(name, (width,), dtype) for name, width in zip(("q_weight", "k_weight"), widths, strict=True)]
    return b.kernel([Arg("x", whole), *weights, Arg("y", whole)], body)
