"""From logits to a token on a GPU. Axes: B sequences, V vocabulary, S samples, P positions, N entries of a list.

Signatures are those of MLC's runtimes. The functions that end in ``_inplace`` change the logits they are given.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.ir import T

COLDEST = 1e-5  # temperature; below it the likeliest token has all the probability
LOWEST = -3.4028234663852886e38  # a token that may not be taken
LOCAL = 1024  # entries that a block sorts in shared memory
EACH = 8  # values of a thread in one slice of a running sum
DOUBLINGS = 14  # of LOCAL, at most: vocabularies of up to 2^24 tokens


def softmax_with_temperature(vocab: int, traits: GpuTraits) -> tirx.PrimFunc:
    """softmax(logits / temperature): (B, 1, V), (B,) -> (B, 1, V). A block for each row."""
    batch, threads = b.size("batch"), traits.threads

    def body(logits: Buffer, temperature: Buffer, probs: Buffer) -> None:
        with b.launch(threads, batch) as (row, _, thread):
            room, held = b.shared(2 * threads), b.local(1)
            start = T.Bind(row * vocab)
            factor = T.Bind(b.f32(b.LOG2_E) / T.max(b.load(temperature, row), b.f32(COLDEST)))

            def compare(at: Expr) -> None:
                b.store(held, 0, T.max(b.load(held, 0), b.load(logits, start + at)))

            def power(at: Expr) -> None:
                value = T.Bind(tirx.exp2((b.load(logits, start + at) - top) * factor))
                b.store(probs, start + at, value)
                b.store(held, 0, b.load(held, 0) + value)

            b.store(held, 0, b.f32(LOWEST))
            b.strided(thread, threads, vocab, compare)
            top = b.block_reduce(b.load(held, 0), thread, threads, b.maximum, room)
            b.store(held, 0, b.f32(0.0))
            b.strided(thread, threads, vocab, power)
            inverse = T.Bind(b.f32(1.0) / b.block_reduce(b.load(held, 0), thread, threads, b.add, room))
            b.strided(
                thread, threads, vocab, lambda at: b.store(probs, start + at, b.load(probs, start + at) * inverse)
            )

    rows = (batch, 1, vocab)
    return b.kernel([Arg("logits", rows), Arg("temperature", (batch,)), Arg("probs", rows)], body)


def argsort(traits: GpuTraits) -> tirx.PrimFunc:
    """Probabilities (B, V) -> the same in falling order, and their tokens (int32); equal ones keep their order.

    A bitonic sort (Batcher 1968) in the form where every exchange goes the same way: runs of twice the length are made
    by comparing each place with its mirror image in the run, and then with places at half the distance, a quarter, ...
    What lies past the end would be the smallest and never moves, so exchanges with it are left out. Distances within
    LOCAL places are exchanged in shared memory, all in one launch.
    """
    batch, vocab = b.size("batch"), b.size("vocab")

    def body(probs: Buffer, values: Buffer, tokens: Buffer) -> None:
        def given(at: Expr, place: Expr) -> tuple[Expr, Expr]:
            return b.load(probs, at), place

        def sorted_so_far(at: Expr, place: Expr) -> tuple[Expr, Expr]:
            return b.load(values, at), b.load(tokens, at)

        _local_sort(traits, batch, vocab, given, values, tokens, whole=True)
        with b.loop(DOUBLINGS) as doubling:
            run = T.Bind(b.i32(LOCAL) << doubling)  # sorted already
            with b.when(run < vocab):
                _exchange(traits, batch, vocab, values, tokens, run, mirrored=True)
                with b.loop(doubling) as halving:
                    _exchange(traits, batch, vocab, values, tokens, run >> (halving + 1), mirrored=False)
                _local_sort(traits, batch, vocab, sorted_so_far, values, tokens, whole=False)

    rows = (batch, vocab)
    return b.kernel([Arg("probs", rows), Arg("values", rows), Arg("tokens", rows, "int32")], body)


def places(pair: Expr, distance: Expr, mirrored: bool) -> tuple[Expr, Expr]:
    """The two places that exchange ``pair`` compares, in runs of 2 * distance."""
    start, inside = b.div(pair, distance) * (distance * 2), b.mod(pair, distance)
    low = T.Bind(start + inside)
    return low, T.Bind(start + distance * 2 - 1 - inside if mirrored else low + distance)


def _in_order(value: Expr, token: Expr, other: Expr, other_token: Expr) -> Expr:
    return tirx.Or(value > other, tirx.And(tirx.EQ(value, other), token < other_token))


def _exchange(
    traits: GpuTraits, batch: Expr, vocab: Expr, values: Buffer, tokens: Buffer, distance: Expr, mirrored: bool
) -> None:
    """One exchange of all places, in device memory."""
    covered = T.Bind(b.div(vocab + (distance * 2 - 1), distance * 2) * distance)  # pairs
    with b.launch(traits.threads, b.ceil_div(covered, traits.threads), batch) as (block, row, thread):
        pair = T.Bind(block * traits.threads + thread)
        low, high = places(pair, distance, mirrored)
        with b.when(tirx.And(pair < covered, high < vocab)):
            at, other = T.Bind(row * vocab + low), T.Bind(row * vocab + high)
            _swap(values, tokens, at, other)


def _swap(values: Buffer, tokens: Buffer, at: Expr, other: Expr) -> None:
    value, token = T.Bind(b.load(values, at)), T.Bind(b.load(tokens, at))
    second, second_token = T.Bind(b.load(values, other)), T.Bind(b.load(tokens, other))
    with b.when(tirx.Not(_in_order(value, token, second, second_token))):
        b.store(values, at, second)
        b.store(tokens, at, second_token)
        b.store(values, other, value)
        b.store(tokens, other, token)


def _local_sort(
    traits: GpuTraits, batch: Expr, vocab: Expr, source: Callable[[Expr, Expr], tuple[Expr, Expr]], values: Buffer,
    tokens: Buffer, whole: bool,
) -> None:  # fmt: skip
    """Runs of LOCAL places in shared memory: sorted (``whole``), or the last exchanges of longer runs."""
    threads = traits.threads
    with b.launch(threads, b.ceil_div(vocab, LOCAL), batch) as (block, row, thread):
        here, here_tokens = b.shared(LOCAL), b.shared(LOCAL, "int32")
        first = T.Bind(block * LOCAL)

        def take(inside: Expr) -> None:
            with b.when(first + inside < vocab):
                value, token = source(row * vocab + first + inside, first + inside)
                b.store(here, inside, value)
                b.store(here_tokens, inside, token)

        def put(inside: Expr) -> None:
            with b.when(first + inside < vocab):
                b.store(values, row * vocab + first + inside, b.load(here, inside))
                b.store(tokens, row * vocab + first + inside, b.load(here_tokens, inside))

        def all_pairs(distance: int, mirrored: bool) -> None:
            b.barrier()

            def one(pair: Expr) -> None:
                low, high = places(pair, b.i32(distance), mirrored)
                with b.when(first + high < vocab):
                    _swap(here, here_tokens, low, high)

            b.strided(thread, threads, LOCAL // 2, one)

        b.strided(thread, threads, LOCAL, take)
        run = 1 if whole else LOCAL
        while run <= LOCAL // 2:
            all_pairs(run, True)
            _fall(run, all_pairs)
            run *= 2
        if not whole:
            _fall(LOCAL, all_pairs)
        b.barrier()
        b.strided(thread, threads, LOCAL, put)


def _fall(distance: int, all_pairs: Callable[[int, bool], None]) -> None:
    """Exchanges at half the distance, a quarter, ... 1."""
    while distance > 1:
        distance //= 2
        all_pairs(distance, False)


def sample_with_top_p(traits: GpuTraits) -> tirx.PrimFunc:
    """For sample s of sequence which[s]: the first token at which the running sum of the sorted probabilities reaches
    uniform[s] of the sum of those that top_p keeps (up to and with the first whose running sum reaches top_p).
    A block for each sample."""
    batch, vocab, samples, threads = b.size("batch"), b.size("vocab"), b.size("samples"), traits.threads

    def body(probs: Buffer, tokens: Buffer, uniform: Buffer, which: Buffer, top_p: Buffer, out: Buffer) -> None:
        with b.launch(threads, samples) as (sample, _, thread):
            room = b.shared(2 * threads)
            row = T.Bind(b.load(which, sample))
            base = T.Bind(row * vocab)
            kept, _ = _reach(probs, base, vocab, b.load(top_p, row), thread, threads, room)
            _, place = _reach(probs, base, vocab, T.Bind(kept * b.load(uniform, sample)), thread, threads, room)
            with b.when(tirx.EQ(thread, 0)):
                b.store(out, sample, b.load(tokens, base + place))

    rows = (batch, vocab)
    return b.kernel(
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


def _reach(
    probs: Buffer, base: Expr, vocab: Expr, goal: Expr, thread: Expr, threads: int, room: Buffer
) -> tuple[Expr, Expr]:
    """(running sum, place) where the running sum first reaches ``goal``; the last place if it never does.

    A slice of EACH values per thread at a time. The loop goes on to the end: a barrier in a loop that shared memory
    ends is refused by WGSL.
    """
    carry, result, place = b.local(1), b.local(1), b.local(1, "int32")
    wanted = T.Bind(goal)
    b.store(carry, 0, b.f32(0.0))
    b.store(place, 0, b.i32(-1))
    with b.loop(b.ceil_div(vocab, threads * EACH)) as step:
        first = T.Bind((step * threads + thread) * EACH)
        inside = [first + e < vocab for e in range(EACH)]
        values = [
            T.Bind(tirx.if_then_else(real, b.load(probs, base + first + e), b.f32(0.0)))
            for e, real in enumerate(inside)
        ]
        own = T.Bind(b.reduce(values, b.add))
        upto = _running_sum(own, thread, threads, room)
        mine, reached = b.local(1, "int32"), b.local(1)
        b.store(mine, 0, vocab)
        b.store(reached, 0, b.load(carry, 0) + (upto - own))
        for e in range(EACH):
            with b.when(tirx.And(inside[e], tirx.EQ(b.load(mine, 0), vocab))):
                b.store(reached, 0, b.load(reached, 0) + values[e])
                with b.when(b.load(reached, 0) >= wanted):
                    b.store(mine, 0, first + e)
        b.store(carry, 0, b.load(carry, 0) + b.load(room, threads - 1))
        b.barrier()
        here = tirx.Cast("float32", b.load(mine, 0))  # exact: below 2^24
        earliest = T.Bind(tirx.Cast("int32", b.block_reduce(here, thread, threads, _smallest, room)))
        b.store(room, thread, b.load(reached, 0))
        b.barrier()
        with b.when(tirx.And(b.load(place, 0) < 0, earliest < vocab)):
            b.store(place, 0, earliest)
            b.store(result, 0, b.load(room, b.div(earliest, EACH) - step * threads))
        b.barrier()
    with b.when(b.load(place, 0) < 0):
        b.store(place, 0, vocab - 1)
        b.store(result, 0, b.load(carry, 0))
    return T.Bind(b.load(result, 0)), T.Bind(b.load(place, 0))


def _smallest(one: Expr, other: Expr) -> Expr:
    return T.min(one, other)


def _running_sum(value: Expr, thread: Expr, threads: int, room: Buffer) -> Expr:
    """The sum of the values of the threads up to this one, also left in ``room``: of whole groups of threads, then of
    the threads of its own group. Few barriers: some compilers of WGSL take long over each."""
    group, total = threads // b.REDUCE_WIDTH, b.local(1)
    b.store(room, thread, value)
    b.barrier()
    with b.when(thread < b.REDUCE_WIDTH):
        b.store(room, threads + thread, b.reduce([b.load(room, thread * group + i) for i in range(group)], b.add))
    b.barrier()
    b.store(total, 0, b.f32(0.0))
    mine = T.Bind(b.div(thread, group))
    with b.loop(mine) as before:
        b.store(total, 0, b.load(total, 0) + b.load(room, threads + before))
    with b.loop(thread - mine * group + 1) as before:
        b.store(total, 0, b.load(total, 0) + b.load(room, mine * group + before))
    b.barrier()
    b.store(room, thread, b.load(total, 0))
    b.barrier()
    return T.Bind(b.load(total, 0))


def take_probs(traits: GpuTraits) -> tirx.PrimFunc:
    """The probability of each sampled token; probability and token at places (row * V + column) of the sorted table."""
    batch, vocab, samples, positions = (b.size(name) for name in ("batch", "vocab", "samples", "positions"))

    def body(probs: Buffer, tokens: Buffer, which: Buffer, sampled: Buffer, at: Buffer, values: Buffer,
             top_values: Buffer, top_tokens: Buffer) -> None:  # fmt: skip
        def probability(s: Expr) -> None:
            b.store(values, s, b.load(probs, b.load(which, s) * vocab + b.load(sampled, s)))

        def top(p: Expr) -> None:
            place = T.Bind(b.load(at, p))
            token = T.Bind(b.load(tokens, place))
            b.store(top_tokens, p, token)
            b.store(top_values, p, b.load(probs, b.div(place, vocab) * vocab + token))

        b.for_each(traits, samples, probability)
        with b.when(positions > 0):  # a launch of no blocks is an error
            b.for_each(traits, positions, top)

    rows, some, places = (batch, vocab), (samples,), (positions,)
    return b.kernel(
        [
            Arg("probs", rows),
            Arg("tokens", rows, "int32"),
            Arg("which", some, "int32"),
            Arg("sampled", some, "int32"),
            Arg("places", places, "int32"),
            Arg("values", some),
            Arg("top_values", places),
            Arg("top_tokens", places, "int32"),
        ],
        body,
    )


def apply_logit_bias(traits: GpuTraits) -> tirx.PrimFunc:
    """logits[row[n], token[n]] += bias[n]."""
    batch, vocab, entries = b.size("batch"), b.size("vocab"), b.size("entries")

    def body(logits: Buffer, row: Buffer, token: Buffer, bias: Buffer) -> None:
        def one(n: Expr) -> None:
            at = T.Bind(b.load(row, n) * vocab + b.load(token, n))
            b.store(logits, at, b.load(logits, at) + b.load(bias, n))

        b.for_each(traits, entries, one)

    return b.kernel([Arg("logits", (batch, vocab)), *_lists(entries, row="int32", token="int32", bias="float32")], body)


def apply_penalty(traits: GpuTraits) -> tirx.PrimFunc:
    """Presence, frequency and repetition penalties (columns of ``penalties``) for tokens seen ``count`` times."""
    batch, vocab, entries, sequences = (b.size(name) for name in ("batch", "vocab", "entries", "sequences"))

    def body(logits: Buffer, rows: Buffer, sequence: Buffer, token: Buffer, count: Buffer, penalties: Buffer) -> None:
        def one(n: Expr) -> None:
            place = T.Bind(b.load(sequence, n))
            at = T.Bind(b.load(rows, place) * vocab + b.load(token, n))
            presence, frequency, repetition = (T.Bind(b.load(penalties, place * 3 + column)) for column in range(3))
            seen = tirx.Cast("float32", b.load(count, n))
            value = T.Bind(b.load(logits, at) - (presence + seen * frequency))
            b.store(logits, at, tirx.Select(value < 0, value * repetition, value / repetition))

        b.for_each(traits, entries, one)

    return b.kernel(
        [
            Arg("logits", (batch, vocab)),
            Arg("rows", (sequences,), "int32"),
            *_lists(entries, sequence="int32", token="int32", count="int32"),
            Arg("penalties", (sequences, 3)),
        ],
        body,
    )


def apply_bitmask(traits: GpuTraits) -> tirx.PrimFunc:
    """Tokens whose bit is 0 get the lowest logit; bit t of a row is bit t % 32 of its word t // 32."""
    batch, vocab, sequences, words = (b.size(name) for name in ("batch", "vocab", "sequences", "words"))

    def body(logits: Buffer, rows: Buffer, mask: Buffer) -> None:
        def one(index: Expr) -> None:
            row, t = T.Bind(b.load(rows, b.div(index, vocab))), T.Bind(b.mod(index, vocab))
            entry = b.load(mask, row * words + b.div(t, 32))
            bit = (entry >> b.mod(t, 32)) & b.i32(1)
            with b.when(tirx.EQ(bit, 0)):
                b.store(logits, row * vocab + t, b.f32(LOWEST))

        b.for_each(traits, sequences * vocab, one)

    return b.kernel(
        [Arg("logits", (batch, vocab)), Arg("rows", (sequences,), "int32"), Arg("mask", (batch, words), "int32")], body
    )


def _lists(entries: Expr, **columns: str) -> list[Arg]:
    return [Arg(name, (entries,), dtype) for name, dtype in columns.items()]
