"""y = x @ weight.T (+ bias) (+ residual) on a GPU, the weight read as it is stored.

Few rows: see gemv.py. Many rows: tiles of TILE rows (or more) x TILE outputs; slices of x and of the dequantized
weight go through shared memory, each thread sums squares of SIDE x SIDE.

Axes: M rows, N outputs, K inputs, U units of a row, E values of a unit (see weights.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from tvm import tirx

from builder.lowering.choices import choose
from builder.lowering.schedules.gpu import block as b
from builder.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from builder.lowering.schedules.gpu.gemv import Inputs, Results, Sender, is_regular, products
from builder.lowering.schedules.gpu.weights import Weight, values, weight_of
from builder.lowering.schedules.ir import T
from builder.ops.linear import LinearLabel

FEW = 4  # rows that are multiplied one by one
TILE, SIDE = 64, 4
LINE = TILE + SIDE  # of a tile in shared memory, for the banks' sake
DEPTH = 32  # slots of a slice, about


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

    def put(self, row: Expr, n: Expr) -> Callable[..., Expr]:
        """What makes a result of a product; everything else that it takes is read here."""
        at = T.Bind(row * self.n + n)
        scale = None if self.scale is None else T.Bind(b.load(self.scale, row))
        added = []
        if self.bias is not None:
            added.append(T.Bind(self.part(b.to_float32(b.load(self.bias, n), self.dtype))))
        if self.residual is not None:
            added.append(T.Bind(self.part(b.load(self.residual, at))))

        return lambda product: b.reduce([product if scale is None else product * scale, *added], b.add)

    def part(self, value: Expr) -> Expr:
        return value if self.share == 1 else value * b.f32(self.share)


def linear(label: LinearLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """The kernel of a "linear" operation (see builder/ops/linear.py for its arguments)."""
    weight, rows = weight_of(label.weight), b.size("rows")

    def body(x: Buffer, *others: Buffer) -> None:
        multiply_rows(traits, weight, rows, Inputs(x, weight.k), *split(label, others, None), sender_of(label))

    return b.kernel([Arg("x", (rows, weight.k)), *args_of(label, weight, rows)], body)


def args_of(label: LinearLabel, weight: Weight, rows: Expr) -> list[Arg]:
    """The arguments after the inputs: (residual), the weight as it is stored, (bias), y."""
    bias = [Arg("bias", (weight.n,), label.weight.dtype)] if label.bias else []
    residual = [Arg("residual", (rows, weight.n))] if label.residual else []
    return [*residual, *weight.args, *bias, Arg("y", (rows, weight.n))]


def split(label: LinearLabel, buffers: tuple[Buffer, ...], scale: Buffer | None) -> tuple[Ends, tuple[Buffer, ...]]:
    """Buffers of ``args_of`` -> what ends a product, and the weight. ``scale``: of the rows of x, if they have some."""
    rest = list(buffers)
    y, residual = rest.pop(), rest.pop(0) if label.residual else None
    bias = rest.pop() if label.bias else None
    return Ends(label.weight.n, label.weight.dtype, bias, scale, residual, y, 1 / label.ranks), tuple(rest)


def sender_of(label: LinearLabel) -> Sender | None:
    """What sends the results to other GPUs, where the pass fuse_allreduce_rmsnorm asked for it."""
    if not label.sent:
        return None
    sender: Sender = import_module("builder.lowering.schedules.gpu.peers").PeerSender(label.ranks)
    return sender


def multiply_rows(
    traits: GpuTraits,
    weight: Weight,
    rows: Expr,
    x: Inputs,
    ends: Ends,
    stored: tuple[Buffer, ...],
    sender: Sender | None,
) -> None:
    results = Results(ends.y, weight.n, ends.put, sender=sender)

    def few() -> None:
        products(traits, weight, stored, rows, lambda row: (x, row, b.i32(0)), results)

    def many(strips: int) -> None:
        many_rows(traits, weight, stored, x, ends, rows, strips)

    def more() -> None:
        b.if_else(rows <= TILE, lambda: many(1), lambda: many(traits.rows_per_thread // SIDE))

    if sender is not None:
        choose("GEMV, sent to peers", "one row, whose sum over GPUs follows")
        few()
        return
    b.if_else(rows <= FEW, few, more if traits.rows_per_thread > SIDE else lambda: many(1))


def many_rows(
    traits: GpuTraits, weight: Weight, stored: Sequence[Buffer], x: Inputs, ends: Ends, rows: Expr, strips: int
) -> None:
    """Tiles of ``strips`` * TILE rows and TILE outputs, by (TILE / SIDE)^2 threads with SIDE rows of each strip."""
    side_threads, tile = TILE // SIDE, Tile(weight, strips * TILE)
    threads = side_threads * side_threads
    most = traits.rows_per_thread // SIDE
    reason = f"more than {FEW if most == 1 else TILE} rows" if strips == most else f"{FEW + 1} to {TILE} rows"
    choose("tiles", reason, rows=tile.rows, outputs=TILE, inputs=tile.depth, threads=threads)
    with b.launch(threads, b.ceil_div(weight.n, TILE), b.ceil_div(rows, tile.rows)) as (block, row_block, thread):
        traits.opt_out_of_pdl()
        x_tile, w_tile = b.shared(tile.depth * tile.line), b.shared(tile.depth * LINE)
        acc = b.local(strips * SIDE * SIDE)
        for place in range(strips * SIDE * SIDE):
            b.store(acc, place, b.f32(0.0))
        column, line = T.Bind(b.mod(thread, side_threads)), T.Bind(b.div(thread, side_threads))
        first_n, first_row = T.Bind(block * TILE), T.Bind(row_block * tile.rows)
        with b.loop(b.ceil_div(weight.units, tile.units)) as step:
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
                    b.store(ends.y, row * weight.n + n, ends.put(row, n)(b.load(acc, i * SIDE + j)))


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
            xs = [tirx.Select(inside, value, b.f32(0.0)) for value in x.four(row, last)]
        else:
            xs = [tirx.if_then_else(inside, x.at(first_row + m, k), b.f32(0.0))]
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
