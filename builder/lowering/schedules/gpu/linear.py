"""y = x @ weight.T (+ bias) (+ residual) on a GPU, the weight read as it is stored.

Few rows: see gemv.py. Many rows: on tensor cores where the traits have them (tensor_products.py). Else tiles of TILE
rows (or more) x TILE outputs: slices of x and of the dequantized weight go through shared memory, each thread sums
squares of THREAD_TILE x THREAD_TILE.

Axes: M rows, N outputs, K inputs, U units of a row, E values of a unit (see weights.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from tvm import tirx

from llm_build.lowering.choices import choose
from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.gpu.gemv import Inputs, Results, Sender, is_regular, multiply_each_row
from llm_build.lowering.schedules.gpu.weights import Weight, values, weight_of
from llm_build.lowering.schedules.ir import T
from llm_build.ops.linear import LinearLabel

GEMV_MAX_ROWS = 4  # that are multiplied one by one: from there on reading the weight once for a tile pays
PACKED_GEMV_MAX_ROWS = 2  # where many rows go by tensor cores: of packed weights; of others one
TILE = 64  # rows and outputs of a block; 4 values of each in registers, and 16 x 16 threads
THREAD_TILE = 4  # rows and outputs of a thread: one load of four
TILE_STRIDE = TILE + THREAD_TILE  # of a tile in shared memory, for the banks' sake
TILE_DEPTH = 32  # slots of a slice, about


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What is added to a product, and where it goes. ``share``: of bias and residual, where several ranks add them."""

    n: int
    dtype: str
    bias: Buffer | None
    scale: Buffer | None
    residual: Buffer | None
    y: Buffer
    share: float = 1.0

    def at(self, row: Expr, n: Expr) -> Callable[..., Expr]:
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
    args, many = for_many_rows(label, traits, weight, [Arg("x", (rows, weight.k)), *args_of(label, weight, rows)])

    def body(x: Buffer, *others: Buffer) -> None:
        multiply_rows(traits, weight, rows, Inputs(x, weight.k), *split(label, others, None), sender_of(label), many)

    return b.kernel(args, body)


Many = Callable[[Inputs, Epilogue, tuple[Buffer, ...]], None]  # multiplies many rows


def for_many_rows(
    label: LinearLabel, traits: GpuTraits, weight: Weight, args: list[Arg]
) -> tuple[list[Arg], Many | None]:
    """What multiplies many rows instead of tiles, if the machine has it for this weight, and the arguments for it."""
    cores, dtype = traits.tensor_products, label.weight.dtype
    if cores is None or label.sent or not cores.fits(weight, dtype):
        return args, None
    args, sizes = cores.with_sizes(args, weight, args[0].shape[0])
    return args, lambda x, epilogue, stored: cores.multiply(weight, stored, sizes, x, epilogue, traits)


def args_of(label: LinearLabel, weight: Weight, rows: Expr) -> list[Arg]:
    """The arguments after the inputs: (residual), the weight as it is stored, (bias), y."""
    bias = [Arg("bias", (weight.n,), label.weight.dtype)] if label.bias else []
    residual = [Arg("residual", (rows, weight.n))] if label.residual else []
    return [*residual, *weight.args, *bias, Arg("y", (rows, weight.n))]


def split(label: LinearLabel, buffers: tuple[Buffer, ...], scale: Buffer | None) -> tuple[Epilogue, tuple[Buffer, ...]]:
    """Buffers of ``args_of`` -> what ends a product, and the weight. ``scale``: of the rows of x, if they have some."""
    rest = list(buffers)
    y, residual = rest.pop(), rest.pop(0) if label.residual else None
    bias = rest.pop() if label.bias else None
    return Epilogue(label.weight.n, label.weight.dtype, bias, scale, residual, y, 1 / label.ranks), tuple(rest)


def sender_of(label: LinearLabel) -> Sender | None:
    """What sends the results to other GPUs, where the pass fuse_allreduce_rmsnorm asked for it."""
    if not label.sent:
        return None
    sender: Sender = import_module("llm_build.lowering.schedules.gpu.peers").PeerSender(label.ranks)
    return sender


def multiply_rows(
    traits: GpuTraits,
    weight: Weight,
    rows: Expr,
    x: Inputs,
    epilogue: Epilogue,
    stored: tuple[Buffer, ...],
    sender: Sender | None,
    many: Many | None,
) -> None:
    results = Results(epilogue.y, weight.n, epilogue.at, sender=sender)

    def gemv() -> None:
        multiply_each_row(traits, weight, stored, rows, lambda row: (x, row, b.i32(0)), results)

    def gemm(strips: int) -> None:
        _tiled_gemm(traits, weight, stored, x, epilogue, rows, strips)

    def gemm_by_rows() -> None:
        b.if_else(rows <= TILE, lambda: gemm(1), lambda: gemm(traits.rows_per_thread // THREAD_TILE))

    if sender is not None:
        choose("GEMV, sent to peers", "one row, whose sum over GPUs follows")
        gemv()
        return
    if many is not None:
        few = 1 if weight.plain else PACKED_GEMV_MAX_ROWS
        b.if_else(rows <= few, gemv, lambda: many(x, epilogue, stored))
        return
    b.if_else(rows <= GEMV_MAX_ROWS, gemv, gemm_by_rows if traits.rows_per_thread > THREAD_TILE else lambda: gemm(1))


def _tiled_gemm(
    traits: GpuTraits, weight: Weight, stored: Sequence[Buffer], x: Inputs, epilogue: Epilogue, rows: Expr, strips: int
) -> None:
    """Tiles of ``strips`` * TILE rows and TILE outputs, by (TILE / SIDE)^2 threads with SIDE rows of each strip."""
    side_threads, tile = TILE // THREAD_TILE, _Tile(weight, strips * TILE)
    threads = side_threads * side_threads
    most = traits.rows_per_thread // THREAD_TILE
    small = f"more than {GEMV_MAX_ROWS if most == 1 else TILE} rows"
    choose(
        "tiles", small if strips == most else f"{GEMV_MAX_ROWS + 1} to {TILE} rows", rows=tile.rows, outputs=TILE,
        inputs=tile.depth, threads=threads,
    )  # fmt: skip
    with b.launch(threads, b.ceil_div(weight.n, TILE), b.ceil_div(rows, tile.rows)) as (block, row_block, thread):
        traits.opt_out_of_pdl()
        x_tile, w_tile = b.shared(tile.depth * tile.stride), b.shared(tile.depth * TILE_STRIDE)
        acc = b.local(strips * THREAD_TILE * THREAD_TILE)
        for place in range(strips * THREAD_TILE * THREAD_TILE):
            b.store(acc, place, b.f32(0.0))
        column, line = T.Bind(b.mod(thread, side_threads)), T.Bind(b.div(thread, side_threads))
        first_n, first_row = T.Bind(block * TILE), T.Bind(row_block * tile.rows)
        with b.loop(b.ceil_div(weight.units, tile.units)) as step:
            first = T.Bind(step * tile.units)
            _load_x_tile(tile, x, first_row, rows, first, x_tile, thread, threads)
            _load_weight_tile(weight, stored, first_n, first, tile.units, w_tile, TILE_STRIDE, thread, threads)
            b.barrier()
            with b.loop(tile.depth) as slot:
                right = b.fetch(w_tile, slot * TILE_STRIDE + column * THREAD_TILE, THREAD_TILE, "float32")
                for strip in range(strips):
                    left = b.fetch(
                        x_tile, slot * tile.stride + strip * TILE + line * THREAD_TILE, THREAD_TILE, "float32"
                    )
                    for i in range(THREAD_TILE):
                        for j in range(THREAD_TILE):
                            at = (strip * THREAD_TILE + i) * THREAD_TILE + j
                            b.store(acc, at, b.load(acc, at) + left[i] * right[j])
            b.barrier()
        for i in range(strips * THREAD_TILE):
            row = T.Bind(first_row + i // THREAD_TILE * TILE + line * THREAD_TILE + i % THREAD_TILE)
            for j in range(THREAD_TILE):
                n = T.Bind(first_n + column * THREAD_TILE + j)
                with b.when(tirx.And(row < rows, n < weight.n)):
                    b.store(epilogue.y, row * weight.n + n, epilogue.at(row, n)(b.load(acc, i * THREAD_TILE + j)))


@dataclass(frozen=True, slots=True)
class _Tile:
    """A slice of x in shared memory: ``depth`` slots of ``rows`` rows, a line for each slot."""

    weight: Weight
    rows: int

    @property
    def units(self) -> int:
        return max(1, min(TILE_DEPTH // self.weight.per_unit, self.weight.units))

    @property
    def depth(self) -> int:
        return self.units * self.weight.per_unit

    @property
    def stride(self) -> int:
        return self.rows + THREAD_TILE


def _load_x_tile(
    tile: _Tile, x: Inputs, first_row: Expr, rows: Expr, first: Expr, smem: Buffer, thread: Expr, threads: int
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
            b.store(smem, (slot + e) * tile.stride + m, value)

    b.strided(thread, threads, across * tile.rows, some)


def _load_weight_tile(
    weight: Weight, stored: Sequence[Buffer], first_n: Expr, first: Expr, units: int, tile: Buffer, width: int,
    thread: Expr, threads: int,
) -> None:  # fmt: skip
    """tile[slot, n] = the weight of output first_n + n; rows and units past the end repeat the last."""

    def one(index: Expr) -> None:
        if weight.transposed:
            n, place = T.Bind(b.mod(index, TILE)), T.Bind(b.div(index, TILE))
        else:
            n, place = T.Bind(b.div(index, units)), T.Bind(b.mod(index, units))
        u = T.Bind(T.min(first + place, weight.units - 1))
        for e, value in enumerate(values(weight, stored, T.Bind(T.min(first_n + n, weight.n - 1)), u)):
            b.store(tile, (place * weight.per_unit + e) * width + n, value)

    b.strided(thread, threads, units * TILE, one)
