"""A few rows times a weight on a GPU: each row by itself, the weight read once, as it is stored.

LANES threads go along the weight's rows of a few outputs; x is in shared memory. A thread holds several loads of the
weight, asks for the first of them before it waits for x, and for a next one whenever one is used up. Sums go through
shuffles or shared memory. Where outputs lie beside each other (layout KN) the lanes are outputs, and groups of threads
share the inputs.

Axes: M rows, N outputs, K inputs, U units of a row, E values of a unit (see weights.py). A turn is what a thread takes
of a row at a time: ``together`` units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx

from builder.lowering.choices import choose
from builder.lowering.schedules.gpu import block as b
from builder.lowering.schedules.gpu.block import Buffer, Expr, GpuTraits
from builder.lowering.schedules.gpu.weights import Held, Weight
from builder.lowering.schedules.ir import T

LANES = 32
HELD_BYTES = 176  # of an output's row, by a thread: 11 turns of 16 bytes, so that rows of 5,504 and 11,008 fit well
HELD_PACKED = 128  # as words have scales
TURNS = 4  # units that are asked for together where outputs lie beside each other
SHARED_UNITS = 512  # whose x is in shared memory at a time there, at most
MANY_OUTPUTS = 16384  # of which a thread takes four, if they are packed: there is more to do for x than for the weight
FEW_OUTPUTS = 2047  # of which it takes one
ASKED = 8  # fours of x that a thread asks for together
UNROLLED = 2  # chunks of a row that are written out one after the other


@dataclass(frozen=True, slots=True)
class Inputs:
    """x (M, K) float32, or what reads another form of it as that (rounded_inputs.Codes)."""

    x: Buffer
    k: int

    @property
    def plain(self) -> bool:
        """Whether four inputs are one load."""
        return True

    def at(self, row: Expr, k: Expr) -> Expr:
        return b.load(self.x, row * self.k + k)

    def four(self, row: Expr, k: Expr) -> list[Expr]:
        """Inputs k .. k + 4; k is a multiple of 4."""
        return b.fetch(self.x, row * self.k + k, 4, "float32")


Row = Callable[[Expr], tuple[Inputs, Expr, Expr]]  # row of the result -> x, its row, the first row of the weight
Put = Callable[[Expr, Expr], Callable[..., Expr]]  # (row, n): reads what else it needs -> product(s) to the result


class Sender(Protocol):
    """Sends results to the GPUs of a library of several ranks, two at a time, as they are made (peers.py)."""

    @property
    def ranks(self) -> int: ...

    def turn(self) -> Expr:
        """Of the sum that comes next; known when the kernels before are done."""

    def send(self, ahead: Expr, pair: Expr, values: Sequence[Expr], turn: Expr) -> None:
        """Two results to the GPU that is ``ahead`` of this one (0: itself)."""


@dataclass(frozen=True, slots=True)
class Results:
    """y (rows, outputs): what ``put`` makes of the products of x's rows with ``outputs`` rows of the weight. With
    several ``strands``, an output has a row in each of as many parts of the weight, and ``put`` gets a product of each.
    ``sender``: what sends all results to other GPUs, if anything does."""

    y: Buffer
    outputs: int
    put: Put
    strands: int = 1
    sender: Sender | None = None

    def store(self, row: Expr, n: Expr, value: Expr) -> None:
        b.store(self.y, row * self.outputs + n, value)


def products(
    traits: GpuTraits, weight: Weight, stored: Sequence[Buffer], rows: Expr, row_of: Row, results: Results
) -> None:
    """Each row by itself."""
    if weight.stacked:
        assert results.strands == 1, "parts of a weight are not beside each other"
        beside(traits, weight, stored, rows, row_of, results)
    else:
        along(traits, weight, stored, rows, row_of, results)


def can_send(weight: Weight, outputs: int) -> bool:
    """Whether a group of threads has two results that lie beside each other."""
    return not weight.stacked and outputs % 2 == 0 and outputs_of(weight, outputs, 1) == 2


def planes(weight: Weight) -> int:
    """x lies in shared memory in planes of four values per unit, so that threads read from different banks."""
    return -(-weight.per_unit // 4)


def is_regular(weight: Weight, x: Inputs) -> bool:
    """Whether four inputs at a time can be read as they lie."""
    return weight.per_unit % 4 == 0 and weight.units * weight.per_unit == weight.k and x.plain


@dataclass(frozen=True, slots=True)
class Walk:
    """The way along a row: ``chunks`` of ``held`` turns, and x in shared memory for ``staged`` chunks at a time."""

    held: int
    chunks: int
    staged: int

    @property
    def stages(self) -> int:
        return -(-self.chunks // self.staged)


def walk_along(weight: Weight, room: int) -> Walk:
    """``room``: values of x in shared memory, at most. Chunks and stages are few, and of equal size."""
    turn = LANES * weight.together
    turns, values = -(-weight.units // turn), turn * 4 * planes(weight)
    most = (HELD_BYTES if weight.plain else HELD_PACKED) // weight.turn_bytes
    most = max(1, min(most, room // values))
    chunks = -(-turns // most)
    held = -(-turns // chunks)
    stages = -(-chunks // max(1, room // (held * values)))
    return Walk(held, chunks, -(-chunks // stages))


def outputs_of(weight: Weight, outputs: int, strands: int) -> int:
    """How many outputs a thread takes, so that there are blocks enough and little else to do than reading."""
    if strands > 1 or outputs <= FEW_OUTPUTS:
        return 1
    return 2 if weight.plain or outputs < MANY_OUTPUTS else 4


@dataclass(frozen=True, slots=True)
class Staged:
    """x of ``count`` units in ``room``, in an order in which threads that take ``together`` units each read beside each
    other: (place in a thread's units, plane of four values, thread's turn, value)."""

    room: Buffer
    count: int
    together: int
    planes: int

    def at(self, turn: Expr, place: Expr | int, e: int) -> Expr:
        return ((place * self.planes + e // 4) * (self.count // self.together) + turn) * 4 + e % 4


def stage(weight: Weight, x: Inputs, row: Expr, first: Expr | int, staged: Staged, thread: Expr, threads: int) -> None:
    """x of the units from ``first``, times each value's factor; zero where a slot is padding or past the end."""
    if is_regular(weight, x):
        stage_regular(weight, x, row, first, staged, thread, threads)
        return

    def unit(place: Expr) -> None:
        u = T.Bind(first + place)
        turn, inside = T.Bind(b.div(place, staged.together)), T.Bind(b.mod(place, staged.together))
        for e in range(weight.per_unit):
            k, real = weight.input_of(u, b.i32(e))
            there = u < weight.units if real is None else tirx.And(u < weight.units, real)
            value = tirx.if_then_else(there, x.at(row, k), b.f32(0.0))
            b.store(staged.room, staged.at(turn, inside, e), scaled(value, weight.factor(e)))

    b.strided(thread, threads, staged.count, unit)


def stage_regular(
    weight: Weight, x: Inputs, row: Expr, first: Expr | int, staged: Staged, thread: Expr, threads: int
) -> None:
    """A few units at a time: all of them are asked for before the first is put down."""
    batch = max(1, ASKED // planes(weight))
    steps = -(-staged.count // threads)
    for start in range(0, steps, batch):
        places = [T.Bind(thread + step * threads) for step in range(start, min(start + batch, steps))]
        units = [T.Bind(T.min(first + place, weight.units - 1)) for place in places]
        loaded = [[x.four(row, u * weight.per_unit + e) for e in range(0, weight.per_unit, 4)] for u in units]
        for place, planes_of_x in zip(places, loaded, strict=True):

            def put(place: Expr = place, planes_of_x: list[list[Expr]] = planes_of_x) -> None:
                turn, inside = T.Bind(b.div(place, staged.together)), T.Bind(b.mod(place, staged.together))
                for e in range(weight.per_unit):
                    value = tirx.Select(first + place < weight.units, planes_of_x[e // 4][e % 4], b.f32(0.0))
                    b.store(staged.room, staged.at(turn, inside, e), scaled(value, weight.factor(e)))

            b.guarded(None if not staged.count % threads else place < staged.count, put)


def scaled(value: Expr, factor: float) -> Expr:
    return value if factor == 1.0 else value * b.f32(factor)


def along(
    traits: GpuTraits, weight: Weight, stored: Sequence[Buffer], rows: Expr, row_of: Row, results: Results
) -> None:
    """LANES threads along the rows of ``each`` outputs."""
    outputs, strands = results.outputs, results.strands
    each, groups, walk = (
        outputs_of(weight, outputs, strands),
        traits.threads // LANES,
        walk_along(weight, traits.smem_values),
    )
    turn_units = LANES * weight.together
    choose(
        "GEMV, K across threads", "few rows; inputs of an output lie beside each other", threads=traits.threads,
        threads_per_output=LANES, outputs_per_group=each, turns=walk.held, chunks=walk.chunks,
    )  # fmt: skip
    count = walk.staged * walk.held * turn_units
    with b.launch(traits.threads, -(-outputs // (groups * each)), rows) as (block, row, thread):
        staged = Staged(b.shared(count * 4 * planes(weight)), count, weight.together, planes(weight))
        lane, group = T.Bind(b.mod(thread, LANES)), T.Bind(b.div(thread, LANES))
        x, x_row, start = row_of(row)
        first_n = T.Bind((block * groups + group) * each)
        ns = [T.Bind(T.min(first_n + r, outputs - 1)) for r in range(each)]
        places = [T.Bind(start + n + strand * outputs) for n in ns for strand in range(strands)]
        held = [[weight.held() for _ in places] for _ in range(walk.held)]
        totals = b.local(len(places))
        for r in range(len(places)):
            b.store(totals, r, b.f32(0.0))

        def ask(chunk: Expr | int, turn: int) -> None:
            wanted = ((chunk * walk.held + turn) * LANES + lane) * weight.together
            u = T.Bind(T.min(wanted, weight.units - weight.together))
            for place, room in zip(places, held[turn], strict=True):
                weight.fill(room, stored, place, u, traits.load_bytes)

        def use(chunk: Expr | int, before: Expr | int) -> None:
            for turn in range(walk.held):
                at = T.Bind(((chunk - before) * walk.held + turn) * LANES + lane)
                dot(weight, held[turn], staged, at, totals)
                b.guarded(chunk + 1 < walk.chunks, lambda turn=turn: ask(chunk + 1, turn))  # type: ignore[misc]

        def one_stage(number: Expr | int) -> None:
            if walk.stages > 1:
                b.barrier()
            stage(weight, x, x_row, number * count, staged, thread, traits.threads)
            b.barrier()
            first = number * walk.staged
            b.repeat(walk.staged, UNROLLED, lambda chunk: use(first + chunk, first))

        for turn in range(walk.held):
            ask(0, turn)
        traits.wait()
        ends = [results.put(row, n) for n in ns] if traits.shuffles else []
        sends = results.sender.turn() if results.sender else None
        b.repeat(walk.stages, 1, one_stage)
        if traits.shuffles:
            finish_by_shuffles(totals, lane, row, first_n, ends, results, sends)
        else:
            finish(traits, totals, each, thread, lambda i: block * (groups * each) + i, row, results)


def dot(weight: Weight, held: Sequence[Held], staged: Staged, turn: Expr, totals: Buffer) -> None:
    """Add the products of a turn of each row to its total."""
    parts = [b.f32(0.0) for _ in held]
    units = [weight.units_of(room) for room in held]
    for place in range(len(units[0])):
        for plane in range(staged.planes):
            xs = b.fetch(staged.room, staged.at(turn, place, plane * 4), 4, "float32")
            for e in range(plane * 4, min(plane * 4 + 4, weight.per_unit)):
                parts = [
                    T.Bind(part + weight.raw(unit[place], e) * xs[e % 4])
                    for part, unit in zip(parts, units, strict=True)
                ]
    for r, (part, room) in enumerate(zip(parts, held, strict=True)):
        value = part if room.scale is None else part * b.load(room.scale, 0)
        b.store(totals, r, b.load(totals, r) + value)


def finish_by_shuffles(
    totals: Buffer, lane: Expr, row: Expr, first_n: Expr, ends: Sequence[Callable[..., Expr]], results: Results,
    turn: Expr | None,
) -> None:  # fmt: skip
    """The lanes' sums of each row, in all lanes; one of them puts down an output."""
    values = []
    for r, end in enumerate(ends):
        places = range(r * results.strands, (r + 1) * results.strands)
        values.append(T.Bind(end(*(b.warp_sum(b.load(totals, place), LANES) for place in places))))
    if results.sender is not None:
        with b.when(tirx.And(lane < results.sender.ranks, first_n < results.outputs)):
            results.sender.send(lane, b.div(first_n, 2), values, turn)
    for r, value in enumerate(values):
        with b.when(tirx.And(tirx.EQ(lane, r), first_n + r < results.outputs)):
            results.store(row, first_n + r, value)


def finish(
    traits: GpuTraits,
    totals: Buffer,
    each: int,
    thread: Expr,
    n_of: Callable[[Expr], Expr],
    row: Expr,
    results: Results,
) -> None:
    """The lanes' sums of each row, by one thread an output; it starts at its own place, for the banks' sake."""
    threads, strands = traits.threads, results.strands
    sums = b.shared(threads * each * strands)
    for r in range(each * strands):
        b.store(sums, r * threads + thread, b.load(totals, r))
    b.barrier()
    with b.when(thread < threads // LANES * each):
        own, group = T.Bind(b.mod(thread, each)), T.Bind(b.div(thread, each))
        sums_of = [b.local(1) for _ in range(strands)]
        for strand, total in enumerate(sums_of):
            base = T.Bind((own * strands + strand) * threads + group * LANES)
            b.store(total, 0, b.f32(0.0))
            with b.loop(LANES) as lane:
                b.store(total, 0, b.load(total, 0) + b.load(sums, base + b.mod(lane + group, LANES)))
        n = T.Bind(n_of(thread))
        with b.when(n < results.outputs):
            results.store(row, n, results.put(row, n)(*(b.load(total, 0) for total in sums_of)))


def beside(
    traits: GpuTraits, weight: Weight, stored: Sequence[Buffer], rows: Expr, row_of: Row, results: Results
) -> None:
    """LANES outputs beside each other; the groups of threads take turns along the inputs."""
    outputs, groups, count = results.outputs, traits.threads // LANES, walk_beside(weight, traits.smem_values)
    choose(
        "GEMV, N across threads", "few rows; outputs lie beside each other", threads=traits.threads,
        outputs_per_block=LANES, groups=groups, units=count,
    )  # fmt: skip
    with b.launch(traits.threads, b.ceil_div(outputs, LANES), rows) as (block, row, thread):
        staged = Staged(b.shared(count * 4 * planes(weight)), count, 1, planes(weight))
        sums, totals = b.shared(traits.threads), b.local(1)
        lane, group = T.Bind(b.mod(thread, LANES)), T.Bind(b.div(thread, LANES))
        x, x_row, start = row_of(row)
        n = T.Bind(block * LANES + lane)
        place = T.Bind(start + T.min(n, outputs - 1))
        traits.wait()
        b.store(totals, 0, b.f32(0.0))
        with b.loop(b.ceil_div(weight.units, count)) as chunk:
            b.barrier()
            stage(weight, x, x_row, T.Bind(chunk * count), staged, thread, traits.threads)
            b.barrier()
            with b.loop(count // (groups * TURNS)) as step:
                turns = [T.Bind((step * TURNS + i) * groups + group) for i in range(TURNS)]
                rooms = [weight.held() for _ in turns]
                for turn, room in zip(turns, rooms, strict=True):
                    wanted = T.Bind(T.min(chunk * count + turn, weight.units - 1))
                    weight.fill(room, stored, place, wanted, traits.load_bytes)
                for turn, room in zip(turns, rooms, strict=True):
                    dot(weight, [room], staged, turn, totals)
        b.store(sums, thread, b.load(totals, 0))
        b.barrier()
        with b.when(tirx.And(thread < LANES, n < outputs)):
            total = b.reduce([b.load(sums, group * LANES + lane) for group in range(groups)], b.add)
            results.store(row, n, results.put(row, n)(total))


def walk_beside(weight: Weight, room: int) -> int:
    """Units whose x is in shared memory at a time, in whole rounds of the groups: few chunks of equal size."""
    most = max(1, min(room // (4 * planes(weight)), SHARED_UNITS) // LANES)
    chunks = b.ceil_div(weight.units, most * LANES)
    return int(b.ceil_div(b.ceil_div(weight.units, chunks), LANES)) * LANES
