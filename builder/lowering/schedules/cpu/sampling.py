"""From logits to a token on the CPU. Axes: B sequences, V vocabulary, S samples, P positions, N entries of a list.

Signatures are those of MLC's runtimes. The functions that end in ``_inplace`` change the logits they are given.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from llm_build.lowering.schedules.ir import T

COLDEST = 1e-5  # temperature; below it the likeliest token has all the probability
LOWEST = -3.4028234663852886e38  # a token that may not be taken


def _wide(value: Expr) -> Expr:
    """An index for addresses."""
    return T.Bind(tirx.Cast("int64", value))


def softmax_with_temperature(vocab: int, isa: Isa) -> tirx.PrimFunc:
    """softmax(logits / temperature): (B, 1, V), (B,) -> (B, 1, V)."""
    batch, lanes = v.size("batch"), isa.lanes

    def body(logits: Buffer, temperature: Buffer, probs: Buffer) -> None:
        with v.loop(batch) as b:
            start = T.Bind(b * vocab)
            factor = T.Bind(
                tirx.const(v.LOG2_E, "float32") / T.max(v.load(temperature, b), tirx.const(COLDEST, "float32"))
            )
            top = _largest(logits, start, vocab, lanes)
            total = _powers(logits, start, vocab, lanes, top, factor, probs)
            inverse = T.Bind(tirx.const(1.0, "float32") / total)

            def scale(at: Expr, count: int) -> None:
                v.store(probs, start + at, v.load(probs, start + at, count) * v.splat(inverse, count), count)

            v.for_vectors(vocab, lanes, scale)

    rows = (batch, 1, vocab)
    return v.kernel([Arg("logits", rows), Arg("temperature", (batch,)), Arg("probs", rows)], body)


def _largest(values: Buffer, start: Expr, count: int, lanes: int) -> Expr:
    best = v.scratch(1)
    v.store(best, 0, v.load(values, start))

    def compare(at: Expr, width: int) -> None:
        found = v.lane_max(v.load(values, start + at, width), width)
        v.store(best, 0, T.max(v.load(best, 0), found))

    v.for_vectors(count, lanes, compare)
    return T.Bind(v.load(best, 0))


def _powers(values: Buffer, start: Expr, count: int, lanes: int, top: Expr, factor: Expr, out: Buffer) -> Expr:
    """out = 2^((value - top) * factor); returns the sum."""
    total = v.scratch(1)
    v.store(total, 0, tirx.const(0.0, "float32"))

    def one(at: Expr, width: int) -> None:
        exponent = (v.load(values, start + at, width) - v.splat(top, width)) * v.splat(factor, width)
        power = T.Bind(v.exp2(exponent, width))
        v.store(out, start + at, power, width)
        v.store(total, 0, v.load(total, 0) + v.lane_sum(power, width))

    v.for_vectors(count, lanes, one)
    return T.Bind(v.load(total, 0))


def argsort(isa: Isa) -> tirx.PrimFunc:
    """Probabilities (B, V) -> the same in falling order, and their tokens (int32); equal ones keep their order.

    A merge sort from runs of 1 up, between the result and a second buffer.
    """
    batch, vocab = v.size("batch"), v.size("vocab")

    def body(probs: Buffer, values: Buffer, tokens: Buffer) -> None:
        spare = v.scratch(vocab, "int32")
        width = v.scratch(1, "int64")
        with v.loop(batch) as b:
            base = T.Bind(b * vocab)
            with v.loop(vocab) as i:
                v.store(tokens, base + i, tirx.Cast("int32", i))
            v.store(width, 0, tirx.const(1, "int64"))
            with T.While(v.load(width, 0) < vocab):
                run = T.Bind(v.load(width, 0))
                with v.loop(tirx.floordiv(vocab + 2 * run - 1, 2 * run)) as pair:
                    merge(probs, base, tokens, spare, pair * 2 * run, run, vocab)
                with v.loop(vocab) as i:
                    v.store(tokens, base + i, v.load(spare, i))
                v.store(width, 0, run * 2)
            with v.loop(vocab) as i:
                v.store(values, base + i, v.load(probs, base + _wide(v.load(tokens, base + i))))

    rows = (batch, vocab)
    return v.kernel([Arg("probs", rows), Arg("values", rows), Arg("tokens", rows, "int32")], body)


def merge(probs: Buffer, base: Expr, tokens: Buffer, spare: Buffer, start: Expr, run: Expr, vocab: Expr) -> None:
    """Merge the runs at ``start`` and ``start + run`` of ``tokens`` into ``spare``."""
    first, second = v.scratch(1, "int64"), v.scratch(1, "int64")
    middle, end = T.Bind(T.min(start + run, vocab)), T.Bind(T.min(start + 2 * run, vocab))
    v.store(first, 0, T.Bind(start))
    v.store(second, 0, middle)
    with v.loop(end - start) as step:
        left, right = T.Bind(v.load(first, 0)), T.Bind(v.load(second, 0))

        def take(cursor: Buffer, at: Expr) -> None:
            v.store(spare, start + step, v.load(tokens, base + at))
            v.store(cursor, 0, at + 1)

        def by_value() -> None:
            here = v.load(probs, base + _wide(v.load(tokens, base + left)))
            there = v.load(probs, base + _wide(v.load(tokens, base + right)))
            v.if_else(here >= there, lambda: take(first, left), lambda: take(second, right))

        def one_is_empty() -> None:
            v.if_else(left < middle, lambda: take(first, left), lambda: take(second, right))

        v.if_else(tirx.And(left < middle, right < end), by_value, one_is_empty)


def sample_with_top_p(isa: Isa) -> tirx.PrimFunc:
    """For sample s of sequence which[s]: the first token at which the running sum of the sorted probabilities reaches
    uniform[s] of the sum of those that top_p keeps (up to and with the first whose running sum reaches top_p)."""
    batch, vocab, samples = v.size("batch"), v.size("vocab"), v.size("samples")

    def body(probs: Buffer, tokens: Buffer, uniform: Buffer, which: Buffer, top_p: Buffer, out: Buffer) -> None:
        with v.loop(samples) as s:
            row = _wide(v.load(which, s))
            base = T.Bind(row * vocab)
            kept, _ = _reach(probs, base, vocab, v.load(top_p, row))
            _, place = _reach(probs, base, vocab, kept * v.load(uniform, s))
            v.store(out, s, v.load(tokens, base + place))

    rows = (batch, vocab)
    return v.kernel(
        [
            Arg("probs", rows),
            Arg("tokens", rows, "int32"),
            Arg("uniform", (samples,)),
            Arg("which", (samples,), "int32"),
            Arg("top_p", (batch,)),
            Arg("out", (samples,), "int32"),
        ],
        body,
    )


def _reach(probs: Buffer, base: Expr, vocab: Expr, goal: Expr) -> tuple[Expr, Expr]:
    """(running sum, place) where the running sum first reaches ``goal``; the last place if it never does."""
    total, place = v.scratch(1), v.scratch(1, "int64")
    wanted = T.Bind(goal)
    v.store(total, 0, v.load(probs, base))
    v.store(place, 0, tirx.const(0, "int64"))
    with T.While(tirx.And(v.load(total, 0) < wanted, v.load(place, 0) < vocab - 1)):
        v.store(place, 0, v.load(place, 0) + 1)
        v.store(total, 0, v.load(total, 0) + v.load(probs, base + v.load(place, 0)))
    return T.Bind(v.load(total, 0)), T.Bind(v.load(place, 0))


def take_probs(isa: Isa) -> tirx.PrimFunc:
    """The probability of each sampled token; probability and token at places (row * V + column) of the sorted table."""
    batch, vocab, samples, positions = (v.size(name) for name in ("batch", "vocab", "samples", "positions"))

    def body(probs: Buffer, tokens: Buffer, which: Buffer, sampled: Buffer, places: Buffer, values: Buffer,
             top_values: Buffer, top_tokens: Buffer) -> None:  # fmt: skip
        with v.loop(samples) as s:
            v.store(values, s, v.load(probs, _wide(v.load(which, s)) * vocab + _wide(v.load(sampled, s))))
        with v.loop(positions) as p:
            place = _wide(v.load(places, p))
            token = T.Bind(v.load(tokens, place))
            v.store(top_tokens, p, token)
            v.store(top_values, p, v.load(probs, tirx.floordiv(place, vocab) * vocab + tirx.Cast("int64", token)))

    rows, some, at = (batch, vocab), (samples,), (positions,)
    return v.kernel(
        [
            Arg("probs", rows),
            Arg("tokens", rows, "int32"),
            Arg("which", some, "int32"),
            Arg("sampled", some, "int32"),
            Arg("places", at, "int32"),
            Arg("values", some),
            Arg("top_values", at),
            Arg("top_tokens", at, "int32"),
        ],
        body,
    )


def apply_logit_bias(isa: Isa) -> tirx.PrimFunc:
    """logits[row[n], token[n]] += bias[n]."""
    batch, vocab, entries = v.size("batch"), v.size("vocab"), v.size("entries")

    def body(logits: Buffer, row: Buffer, token: Buffer, bias: Buffer) -> None:
        with v.loop(entries) as n:
            at = T.Bind(_wide(v.load(row, n)) * vocab + _wide(v.load(token, n)))
            v.store(logits, at, v.load(logits, at) + v.load(bias, n))

    return v.kernel([Arg("logits", (batch, vocab)), *_lists(entries, row="int32", token="int32", bias="float32")], body)


def apply_penalty(isa: Isa) -> tirx.PrimFunc:
    """Presence, frequency and repetition penalties (columns of ``penalties``) for tokens seen ``count`` times."""
    batch, vocab, entries, sequences = (v.size(name) for name in ("batch", "vocab", "entries", "sequences"))

    def body(logits: Buffer, rows: Buffer, sequence: Buffer, token: Buffer, count: Buffer, penalties: Buffer) -> None:
        with v.loop(entries) as n:
            place = _wide(v.load(sequence, n))
            at = T.Bind(_wide(v.load(rows, place)) * vocab + _wide(v.load(token, n)))
            presence, frequency, repetition = (T.Bind(v.load(penalties, place * 3 + column)) for column in range(3))
            seen = tirx.Cast("float32", v.load(count, n))
            value = T.Bind(v.load(logits, at) - (presence + seen * frequency))
            v.store(logits, at, tirx.if_then_else(value < 0, value * repetition, value / repetition))

    return v.kernel(
        [
            Arg("logits", (batch, vocab)),
            Arg("rows", (sequences,), "int32"),
            *_lists(entries, sequence="int32", token="int32", count="int32"),
            Arg("penalties", (sequences, 3)),
        ],
        body,
    )


def apply_bitmask(isa: Isa) -> tirx.PrimFunc:
    """Tokens whose bit is 0 get the lowest logit; bit t of a row is bit t % 32 of its word t // 32."""
    batch, vocab, sequences, words = (v.size(name) for name in ("batch", "vocab", "sequences", "words"))

    def body(logits: Buffer, rows: Buffer, mask: Buffer) -> None:
        with v.loop(sequences) as s:
            row = _wide(v.load(rows, s))
            with v.loop(vocab) as t:
                word = v.load(mask, row * words + tirx.floordiv(t, 32))
                bit = (word >> tirx.Cast("int32", tirx.floormod(t, 32))) & 1
                with v.when(bit == 0):
                    v.store(logits, row * vocab + t, tirx.const(LOWEST, "float32"))

    return v.kernel(
        [Arg("logits", (batch, vocab)), Arg("rows", (sequences,), "int32"), Arg("mask", (batch, words), "int32")], body
    )


def _lists(entries: Any, **columns: str) -> list[Arg]:
    return [Arg(name, (entries,), dtype) for name, dtype in columns.items()]
