"""y = x @ weight.T (+ bias) (+ residual) on a GPU, the weight read as it is stored.

Few rows: LANES threads go along the weight's rows of a few outputs, a unit at a time, x in shared memory; their sums
are added at the end. Where outputs lie beside each other (layout KN) the lanes are outputs, and groups of threads
share the inputs. Many rows: tiles of TILE rows (or more) x TILE outputs; slices of x and of the dequantized weight go
through shared memory, each thread sums squares of SIDE x SIDE.

Axes: M rows, N outputs, K inputs, U units of a row, E values of a unit (see weights.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from builder.lowering.schedules.gpu import block as b
from builder.lowering.schedules.gpu.block import Arg, Buffer, Device, Expr
from builder.lowering.schedules.gpu.weights import Plain, Weight, values, weight_of
from builder.quant.inputs import PER_WORD, byte_value
from builder.quant.relax import activation_of

FEW = 4  # rows that are multiplied one by one
LANES = 32
TILE, SIDE = 64, 4
LINE = TILE + SIDE  # of a tile in shared memory, for the banks' sake
DEPTH = 32  # slots of a slice, about
ROOM = 4096  # values of x in shared memory, at most
HELD = 16  # units that a thread holds of each of four outputs, at most
HELD_OF_FEW = 24  # and of each of one or two: rows of 5,504 and 11,008 inputs are then chunks that waste little
TURNS = 4  # units that it asks for together where outputs lie beside each other
MANY_OUTPUTS = 16384  # of which a thread takes four
FEW_PLAIN, FEW_PACKED = 4096, 2047  # of which it takes one


@dataclass(frozen=True, slots=True)
class Ends:
    """What is added to a product, and where it goes. ``share``: of bias and residual, where several ranks add them."""

    n: int
    dtype: str
    bias: Buffer | None
    scale: Buffer | None
    residual: Buffer | None
    y: Buffer
    share: float = 1.0

    def put(self, row: Expr, n: Expr, value: Expr) -> None:
        if self.scale is not None:
            value = value * b.load(self.scale, row)
        if self.bias is not None:
            value = value + self.part(b.to_float32(b.load(self.bias, n), self.dtype))
        at = T.Bind(row * self.n + n)
        if self.residual is not None:
            value = value + self.part(b.load(self.residual, at))
        b.store(self.y, at, value)

    def part(self, value: Expr) -> Expr:
        return value if self.share == 1 else value * b.number(self.share)


def linear(fields: Mapping[str, Any], device: Device) -> tirx.PrimFunc:
    """The kernel of a "linear" operation (see builder/quant/relax.py for its arguments)."""
    weight, rows, kind = weight_of(fields), b.size("rows"), activation_of(fields)
    inputs = [Arg("x", (rows, weight.k))]
    if kind:
        inputs = [Arg("x", (rows, -(-weight.k // PER_WORD)), "uint32"), Arg("x_scale", (rows, 1))]
    bias = [Arg("bias", (weight.n,), fields["dtype"])] if fields["bias"] else []
    residual = [Arg("residual", (rows, weight.n))] if fields["residual"] else []

    def body(x: Buffer, *others: Buffer) -> None:
        rest = list(others)
        y, scale = rest.pop(), rest.pop(0) if kind else None
        added = rest.pop(0) if residual else None
        share = 1 / fields.get("ranks", 1)
        ends = Ends(weight.n, fields["dtype"], rest.pop() if bias else None, scale, added, y, share)
        stored, read = tuple(rest), Inputs(x, weight.k, kind)

        def few() -> None:
            products(device, weight, stored, rows, lambda row: (read, row, b.integer(0)), ends.put, weight.n)

        def many(strips: int) -> None:
            many_rows(device, weight, stored, read, ends, rows, strips)

        def more() -> None:
            b.either(rows <= TILE, lambda: many(1), lambda: many(device.strips))

        b.either(rows <= FEW, few, more if device.strips > 1 else lambda: many(1))

    return b.kernel([*inputs, *residual, *weight.args, *bias, Arg("y", (rows, weight.n))], body)


@dataclass(frozen=True, slots=True)
class Inputs:
    """x (M, K) float32; or codes of a ``kind`` (M, W), whose rows have scales that are applied at the end."""

    x: Buffer
    k: int
    kind: str

    def at(self, row: Expr, k: Expr) -> Expr:
        if not self.kind:
            return b.load(self.x, row * self.k + k)
        word = b.load(self.x, row * -(-self.k // PER_WORD) + b.div(k, PER_WORD))
        shift = tirx.Cast("uint32", b.mod(k, PER_WORD) * 8)
        return byte_value((word >> shift) & b.word(0xFF), self.kind)

    def four(self, row: Expr, k: Expr) -> list[Expr]:
        """Inputs k .. k + 4; k is a multiple of 4."""
        return b.fetch(self.x, row * self.k + k, 4, "float32")


Row = Callable[[Expr], tuple[Inputs, Expr, Expr]]  # row of the result -> x, its row, the first row of the weight
Put = Callable[[Expr, Expr, Expr], None]  # (row, n, product)


def products(
    device: Device, weight: Weight, stored: Sequence[Buffer], rows: Expr, row_of: Row, put: Put, outputs: int
) -> None:
    """Each row by itself, with ``outputs`` rows of the weight."""
    if weight.stacked:
        beside(device, weight, stored, rows, row_of, put, outputs)
    else:
        along(device, weight, stored, rows, row_of, put, outputs)


def planes(weight: Weight) -> int:
    """x lies in shared memory in planes of four values per unit, so that threads read from different banks."""
    return -(-weight.per_unit // 4)


def is_regular(weight: Weight, x: Inputs) -> bool:
    """Whether four inputs at a time can be read as they lie."""
    return weight.per_unit % 4 == 0 and weight.units * weight.per_unit == weight.k and not x.kind


def chunk_units(weight: Weight, held: int = HELD) -> int:
    """Units whose x is in shared memory at a time, in whole rounds of LANES threads: few chunks of equal size."""
    most = min(ROOM // (4 * planes(weight)), held * LANES)
    step = LANES * weight.together
    chunks = b.up(weight.units, max(1, most // step) * step)
    return int(b.up(b.up(weight.units, chunks), step)) * step


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


def stage(weight: Weight, x: Inputs, row: Expr, first: Expr, staged: Staged, thread: Expr, threads: int) -> None:
    """x of the units from ``first``, times each value's factor; zero where a slot is padding or past the end."""

    regular = is_regular(weight, x)

    def unit(place: Expr) -> None:
        u = T.Bind(first + place)
        turn, inside = T.Bind(b.div(place, staged.together)), T.Bind(b.mod(place, staged.together))
        last = T.Bind(T.min(u, weight.units - 1))
        xs: list[Expr] = []
        for e in range(weight.per_unit):
            k, real = weight.input_of(last if regular else u, b.integer(e))
            there = u < weight.units if real is None else tirx.And(u < weight.units, real)
            if regular:
                xs = xs if e % 4 else x.four(row, k)
                value = tirx.Select(there, xs[e % 4], b.number(0.0))
            else:
                value = tirx.if_then_else(there, x.at(row, k), b.number(0.0))
            factor = weight.factor(e)
            b.store(staged.room, staged.at(turn, inside, e), value if factor == 1.0 else value * b.number(factor))

    b.strided(thread, threads, staged.count, unit)


def along(
    device: Device, weight: Weight, stored: Sequence[Buffer], rows: Expr, row_of: Row, put: Put, outputs: int
) -> None:
    """LANES threads along the rows of ``each`` outputs. A thread asks for all that it needs of the weight in a chunk
    before it waits for x."""
    few = FEW_PLAIN if isinstance(weight, Plain) else FEW_PACKED
    each = 4 if outputs >= MANY_OUTPUTS else 2 if outputs > few else 1
    groups, count = device.threads // LANES, chunk_units(weight, HELD if each == 4 else HELD_OF_FEW)
    turns = count // (LANES * weight.together)
    with b.launch(device.threads, -(-outputs // (groups * each)), rows) as (block, row, thread):
        staged = Staged(b.shared(count * 4 * planes(weight)), count, weight.together, planes(weight))
        sums, totals = b.shared(device.threads * each), b.private(each)
        lane, group = T.Bind(b.mod(thread, LANES)), T.Bind(b.div(thread, LANES))
        x, x_row, start = row_of(row)
        first_n = T.Bind((block * groups + group) * each)
        places = [T.Bind(start + T.min(first_n + r, outputs - 1)) for r in range(each)]
        for r in range(each):
            b.store(totals, r, b.number(0.0))
        with b.loop(b.up(weight.units, count)) as chunk:
            held = []
            for turn in range(turns):
                wanted = chunk * count + (turn * LANES + lane) * weight.together
                u = T.Bind(T.min(wanted, weight.units - weight.together))
                held.append([(weight.units_from(stored, n, u), weight.scale(stored, n, u)) for n in places])
            device.wait()
            b.barrier()
            stage(weight, x, x_row, T.Bind(chunk * count), staged, thread, device.threads)
            b.barrier()
            for turn in range(turns):
                dot(weight, held[turn], staged, T.Bind(turn * LANES + lane), totals)
        for r in range(each):
            b.store(sums, r * device.threads + thread, b.load(totals, r))
        b.barrier()
        finish(
            sums, device.threads, groups * each, thread, lambda i: block * (groups * each) + i, outputs, row, put, each
        )


Held = tuple[list[list[Expr]], Expr | None]  # units that lie together, and their scale


def dot(weight: Weight, held: Sequence[Held], staged: Staged, turn: Expr, totals: Buffer) -> None:
    """Add the products of the units of each output to its total."""
    parts = [b.number(0.0) for _ in held]
    for place in range(weight.together if not weight.stacked else 1):
        for plane in range(staged.planes):
            xs = b.fetch(staged.room, staged.at(turn, place, plane * 4), 4, "float32")
            for e in range(plane * 4, min(plane * 4 + 4, weight.per_unit)):
                parts = [
                    T.Bind(part + weight.raw(units[place], e) * xs[e % 4])
                    for part, (units, _) in zip(parts, held, strict=True)
                ]
    for r, (part, (_, scale)) in enumerate(zip(parts, held, strict=True)):
        b.store(totals, r, b.load(totals, r) + (part if scale is None else part * scale))


def finish(
    sums: Buffer, threads: int, count: int, thread: Expr, n_of: Callable[[Expr], Expr], outputs: int, row: Expr,
    put: Put, each: int,
) -> None:  # fmt: skip
    """The sums of the lanes of each output, by one thread each; it starts at its own place, for the banks' sake."""
    with b.when(thread < count):
        base = T.Bind(b.mod(thread, each) * threads + b.div(thread, each) * LANES)
        total = b.private(1)
        b.store(total, 0, b.number(0.0))
        with b.loop(LANES) as lane:
            at = base + b.mod(lane + b.div(thread, each), LANES)
            b.store(total, 0, b.load(total, 0) + b.load(sums, at))
        n = T.Bind(n_of(thread))
        with b.when(n < outputs):
            put(row, n, b.load(total, 0))


def beside(
    device: Device, weight: Weight, stored: Sequence[Buffer], rows: Expr, row_of: Row, put: Put, outputs: int
) -> None:
    """LANES outputs beside each other; the groups of threads take turns along the inputs."""
    groups, count = device.threads // LANES, chunk_units(weight)
    with b.launch(device.threads, b.up(outputs, LANES), rows) as (block, row, thread):
        staged = Staged(b.shared(count * 4 * planes(weight)), count, 1, planes(weight))
        sums, totals = b.shared(device.threads), b.private(1)
        lane, group = T.Bind(b.mod(thread, LANES)), T.Bind(b.div(thread, LANES))
        x, x_row, start = row_of(row)
        n = T.Bind(block * LANES + lane)
        place = T.Bind(start + T.min(n, outputs - 1))
        b.store(totals, 0, b.number(0.0))
        with b.loop(b.up(weight.units, count)) as chunk:
            b.barrier()
            stage(weight, x, x_row, T.Bind(chunk * count), staged, thread, device.threads)
            b.barrier()
            with b.loop(count // (groups * TURNS)) as step:
                turns = [T.Bind((step * TURNS + i) * groups + group) for i in range(TURNS)]
                wanted = [T.Bind(T.min(chunk * count + turn, weight.units - 1)) for turn in turns]
                held = [([weight.unit(stored, place, u)], weight.scale(stored, place, u)) for u in wanted]
                for turn, one in zip(turns, held, strict=True):
                    dot(weight, [one], staged, turn, totals)
        b.store(sums, thread, b.load(totals, 0))
        b.barrier()
        with b.when(tirx.And(thread < LANES, n < outputs)):
            put(row, n, b.chain([b.load(sums, group * LANES + lane) for group in range(groups)], b.add))


def many_rows(
    device: Device, weight: Weight, stored: Sequence[Buffer], x: Inputs, ends: Ends, rows: Expr, strips: int
) -> None:
    """Tiles of ``strips`` * TILE rows and TILE outputs, by (TILE / SIDE)^2 threads with SIDE rows of each strip."""
    side_threads, tile = TILE // SIDE, Tile(weight, strips * TILE)
    threads = side_threads * side_threads
    with b.launch(threads, b.up(weight.n, TILE), b.up(rows, tile.rows)) as (block, row_block, thread):
        x_tile, w_tile = b.shared(tile.depth * tile.line), b.shared(tile.depth * LINE)
        acc = b.private(strips * SIDE * SIDE)
        for place in range(strips * SIDE * SIDE):
            b.store(acc, place, b.number(0.0))
        column, line = T.Bind(b.mod(thread, side_threads)), T.Bind(b.div(thread, side_threads))
        first_n, first_row = T.Bind(block * TILE), T.Bind(row_block * tile.rows)
        with b.loop(b.up(weight.units, tile.units)) as step:
            first = T.Bind(step * tile.units)
            fill_x(tile, x, first_row, rows, first, x_tile, thread, threads)
            fill_weight(weight, stored, first_n, first, tile.units, w_tile, LINE, thread, threads)
            b.barrier()
            with b.loop(tile.depth) as slot:
                right = b.fetch(w_tile, slot * LINE + column * SIDE, SIDE, "float32")
                for strip in range(strips):
                    left = b.fetch(x_tile, slot * tile.line + strip * TILE + line * SIDE, SIDE, "float32")
                    for i in range(SIDE):
                        for j in range(SIDE):
                            at = (strip * SIDE + i) * SIDE + j
                            b.store(acc, at, b.load(acc, at) + left[i] * right[j])
            b.barrier()
        for i in range(strips * SIDE):
            row = T.Bind(first_row + i // SIDE * TILE + line * SIDE + i % SIDE)
            for j in range(SIDE):
                n = T.Bind(first_n + column * SIDE + j)
                with b.when(tirx.And(row < rows, n < weight.n)):
                    ends.put(row, n, b.load(acc, i * SIDE + j))


@dataclass(frozen=True, slots=True)
class Tile:
    """A slice of x in shared memory: ``depth`` slots of ``rows`` rows, a line for each slot."""

    weight: Weight
    rows: int

    @property
    def units(self) -> int:
        return max(1, min(DEPTH // self.weight.per_unit, self.weight.units))

    @property
    def depth(self) -> int:
        return self.units * self.weight.per_unit

    @property
    def line(self) -> int:
        return self.rows + SIDE


def fill_x(
    tile: Tile, x: Inputs, first_row: Expr, rows: Expr, first: Expr, room: Buffer, thread: Expr, threads: int
) -> None:
    """room[slot, m] = x[first_row + m] at the slot's input; zero where there is none."""
    weight = tile.weight
    regular = is_regular(weight, x)
    together = 4 if regular else 1
    across = tile.depth // together

    def some(index: Expr) -> None:
        m, slot = T.Bind(b.div(index, across)), T.Bind(b.mod(index, across) * together)
        u = T.Bind(first + b.div(slot, weight.per_unit))
        k, real = weight.input_of(u, b.mod(slot, weight.per_unit))
        inside = tirx.And(first_row + m < rows, u < weight.units)
        inside = T.Bind(inside if real is None else tirx.And(inside, real))
        if regular:
            row, last = T.Bind(T.min(first_row + m, rows - 1)), T.Bind(T.min(k, weight.k - together))
            xs = [tirx.Select(inside, value, b.number(0.0)) for value in x.four(row, last)]
        else:
            xs = [tirx.if_then_else(inside, x.at(first_row + m, k), b.number(0.0))]
        for e, value in enumerate(xs):
            b.store(room, (slot + e) * tile.line + m, value)

    b.strided(thread, threads, across * tile.rows, some)


def fill_weight(
    weight: Weight, stored: Sequence[Buffer], first_n: Expr, first: Expr, units: int, tile: Buffer, width: int,
    thread: Expr, threads: int,
) -> None:  # fmt: skip
    """tile[slot, n] = the weight of output first_n + n; rows and units past the end repeat the last."""

    def one(index: Expr) -> None:
        if weight.stacked:
            n, place = T.Bind(b.mod(index, TILE)), T.Bind(b.div(index, TILE))
        else:
            n, place = T.Bind(b.div(index, units)), T.Bind(b.mod(index, units))
        u = T.Bind(T.min(first + place, weight.units - 1))
        for e, value in enumerate(values(weight, stored, T.Bind(T.min(first_n + n, weight.n - 1)), u)):
            b.store(tile, (place * weight.per_unit + e) * width + n, value)

    b.strided(thread, threads, units * TILE, one)
