"""y = x @ weight.T (+ bias) (+ residual) on the CPU, the weight read as it is stored.

Few rows: every output is a dot product along the packed row (vectors of words, one shift and mask per value in a word,
the scale applied once per vector). Many rows: a panel of the weight, 2 vectors of outputs wide and BLOCK inputs deep,
is dequantized once and multiplied with all rows, ROWS x 2 vectors of sums in registers.

Axes: M rows, N outputs, K inputs, L lanes. How a stored weight is read is in weights.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from llm_build.lowering.choices import choose
from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.packed_weights import OUTPUTS_PER_DOT, VECTORS_PER_DOT, Grouped, Transposed
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from llm_build.lowering.schedules.cpu.weights import Plain, Weight, weight_of
from llm_build.lowering.schedules.ir import T
from llm_build.ops.linear import LinearLabel

GEMV_MAX_ROWS = 3  # rows that are multiplied one by one
TILE_ROWS = 6  # rows of sums in registers
ROW_BLOCK = 240  # rows whose slice of x, BLOCK wide, a core keeps close (120 KiB)
MAX_PANELS_PER_TASK = 8  # of one task, at most
MIN_TASKS = 16  # tasks of a product, at least, if there are so many panels: for several threads


def linear(label: LinearLabel, isa: Isa) -> tirx.PrimFunc | None:
    """The kernel of a "linear" operation (see builder/ops/linear.py for its arguments)."""
    weight = weight_of(label.weight, isa)
    if weight is None or weight.n < OUTPUTS_PER_DOT:
        choose("plain loops", "a weight that no kernel here reads, or too few outputs", outputs=label.weight.n)
        return None
    rows = v.size("rows")

    def body(x: Buffer, *others: Buffer) -> None:
        y, epilogue, stored = split(label, isa, others)
        multiply_rows(weight, stored, x, epilogue, y, rows)

    return v.kernel([Arg("x", (rows, weight.k)), *args_of(label, weight, rows)], body)


def args_of(label: LinearLabel, weight: Weight, rows: Expr) -> list[Arg]:
    """The arguments after the inputs: (residual), the weight as it is stored, (bias), y."""
    bias = [Arg("bias", (weight.n,), label.weight.dtype)] if label.bias else []
    residual = [Arg("residual", (rows, weight.n))] if label.residual else []
    return [*residual, *weight.args, *bias, Arg("y", (rows, weight.n))]


def split(label: LinearLabel, isa: Isa, buffers: tuple[Buffer, ...]) -> tuple[Buffer, Epilogue, tuple[Buffer, ...]]:
    """Buffers of ``args_of`` -> y, what an output starts from, and the weight."""
    rest = list(buffers)
    y, residual = rest.pop(), rest.pop(0) if label.residual else None
    bias = rest.pop() if label.bias else None
    return y, Epilogue(label.weight.n, label.weight.dtype, bias, residual, isa, 1 / label.ranks), tuple(rest)


def multiply_rows(
    weight: Weight, stored: tuple[Buffer, ...], x: Buffer, epilogue: Epilogue, y: Buffer, rows: Expr
) -> None:
    v.if_else(
        rows <= tirx.const(GEMV_MAX_ROWS, "int64"),
        lambda: _multiply_few_rows(weight, stored, x, epilogue, y, rows),
        lambda: _gemm(weight, stored, x, epilogue, y, rows),
    )


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What an output is before the products are added: bias and residual, or zero."""

    n: int
    dtype: str
    bias: Buffer | None
    residual: Buffer | None
    isa: Isa
    share: float = 1.0  # of both, where several ranks add them

    def at(self, row: Expr, n: Expr, lanes: int) -> Expr:
        value = v.splat(0.0, lanes)
        if self.bias is not None:
            value = v.to_float32(v.load(self.bias, n, lanes), self.dtype, lanes, self.isa)
        if self.residual is not None:
            value = value + v.load(self.residual, row * self.n + n, lanes)
        return value if self.share == 1 else value * v.splat(self.share, lanes)


def _multiply_few_rows(
    weight: Weight, stored: tuple[Buffer, ...], x: Buffer, epilogue: Epilogue, y: Buffer, rows: Expr
) -> None:
    if isinstance(weight, Transposed):
        _gemv_transposed(weight, stored, x, epilogue, y, rows)
    else:
        _gemv(weight, stored, x, epilogue, y, rows)


def _gemv_transposed(
    weight: Transposed, stored: tuple[Buffer, ...], x: Buffer, epilogue: Epilogue, y: Buffer, rows: Expr
) -> None:
    """STRIPS vectors of outputs at a time, down the groups; the last ones overlap the ones before."""
    lanes = weight.lanes
    width = VECTORS_PER_DOT * lanes
    choose("GEMV", f"up to {GEMV_MAX_ROWS} rows; outputs lie beside each other", outputs=width, lanes=lanes)
    with v.loop(rows) as row:
        prepared = weight.prepare(x, row)
        with v.loop(-(-weight.n // width), parallel=weight.n * weight.k >= v.PARALLEL_MACS) as block:
            n = T.Bind(T.min(block * width, weight.n - width))
            acc = v.scratch(width)
            for part in range(0, width, lanes):
                v.store(acc, part, v.splat(0.0, lanes), lanes)
            with v.loop(weight.groups) as group:
                weight.dot(stored, prepared, n, group, acc)
            for part in range(0, width, lanes):
                dot = v.load(acc, part, lanes)
                v.store(y, row * weight.n + n + part, epilogue.at(row, n + part, lanes) + dot, lanes)


def _gemv(
    weight: Plain | Grouped, stored: tuple[Buffer, ...], x: Buffer, epilogue: Epilogue, y: Buffer, rows: Expr
) -> None:
    """Dot products, OUTPUTS at a time; the last ones overlap the ones before, writing the same values."""
    lanes, outputs = weight.lanes, OUTPUTS_PER_DOT
    choose("GEMV", f"up to {GEMV_MAX_ROWS} rows; inputs lie beside each other", outputs=outputs, lanes=lanes)
    with v.loop(rows) as row:
        prepared = weight.prepare(x, row)
        with v.loop(-(-weight.n // outputs), parallel=weight.n * weight.k >= v.PARALLEL_MACS) as block:
            n = T.Bind(T.min(block * outputs, weight.n - outputs))
            acc = v.scratch(outputs * lanes)
            for r in range(outputs):
                v.store(acc, r * lanes, v.splat(0.0, lanes), lanes)
            with v.loop(weight.vectors) as step:
                weight.dot(stored, prepared, n, step, acc)
            for r in range(outputs):
                dot = v.lane_sum(v.load(acc, r * lanes, lanes), lanes)
                v.store(y, row * weight.n + n + r, epilogue.at(row, n + r, 1) + dot)


@dataclass(frozen=True, slots=True)
class _Panel:
    """Outputs n .. n + lanes * count of the weight, inputs first .. first + depth, dequantized and turned."""

    data: Buffer
    lanes: int
    count: int
    n: Expr
    first: Expr
    depth: Expr


def _gemm(weight: Weight, stored: tuple[Buffer, ...], x: Buffer, epilogue: Epilogue, y: Buffer, rows: Expr) -> None:
    """Panels of 2 vectors of outputs, several of them in a task, for ROW_BLOCK rows at a time.

    Sums are collected in y, block of inputs by block, so that the slice of x in use stays in the cache. What is left of
    N is one more panel that starts early; it comes after those that it overlaps, in the same task, from the start.
    """
    lanes, count = _panel_shape(weight)
    width = lanes * count
    panels, rest = divmod(weight.n, width)
    together = max(1, min(MAX_PANELS_PER_TASK, panels // MIN_TASKS))
    tasks = -(-panels // together)
    tile = {"rows": TILE_ROWS, "outputs": width, "inputs": weight.block, "panels_per_task": together, "lanes": lanes}
    choose("dequantized panels", f"more than {GEMV_MAX_ROWS} rows", **tile)
    with v.loop(tirx.floordiv(rows + (ROW_BLOCK - 1), ROW_BLOCK)) as block, v.loop(tasks, parallel=True) as task:
        low, high = T.Bind(block * ROW_BLOCK), T.Bind(T.min((block + 1) * ROW_BLOCK, rows))
        data = v.scratch(weight.block * width)
        with v.loop(1 + (task == tasks - 1).astype("int32") if rest else 1) as overlapping:
            here = T.min(together, panels - task * together)
            with (
                v.loop(-(-weight.k // weight.block)) as step,
                v.loop(tirx.if_then_else(overlapping > 0, 1, here) if rest else here) as place,
            ):
                regular = (task * together + place) * width
                n = T.Bind(tirx.if_then_else(overlapping > 0, weight.n - width, regular) if rest else regular)
                first = T.Bind(step * weight.block)
                depth = T.Bind(T.min(weight.k - first, weight.block))
                weight.panel(stored, n, first, depth, data, lanes, count)
                panel = _Panel(data, lanes, count, n, first, depth)
                with v.loop(tirx.floordiv(high - low + (TILE_ROWS - 1), TILE_ROWS)) as tile:
                    _multiply(weight, panel, x, epilogue, y, T.Bind(low + tile * TILE_ROWS), high)


def _panel_shape(weight: Weight) -> tuple[int, int]:
    """(lanes, vectors) of a panel: 2 of the widest vectors that N has room for."""
    lanes = weight.isa.lanes
    while lanes > 1 and 2 * lanes > weight.n:
        lanes //= 2
    return lanes, 2


def _multiply(weight: Weight, panel: _Panel, x: Buffer, epilogue: Epilogue, y: Buffer, row: Expr, end: Expr) -> None:
    """Add ROWS rows of x times the panel to y; rows past the end repeat the last one and are not stored.

    A block of inputs is summed by itself, and the epilogue comes last: one sum that begins with the residual stream
    loses what is small beside an outlier of it."""
    lanes, n = panel.lanes, panel.n
    width = lanes * panel.count
    acc = v.scratch(TILE_ROWS * width)
    places = [(r, part, r * width + part) for r in range(TILE_ROWS) for part in range(0, width, lanes)]
    real = [T.Bind(T.min(row + r, end - 1)) for r in range(TILE_ROWS)]

    for _, _, at in places:
        v.store(acc, at, v.splat(0.0, lanes), lanes)
    with v.loop(panel.depth) as k:
        columns = {part: T.Bind(v.load(panel.data, k * width + part, lanes)) for part in range(0, width, lanes)}
        values = [T.Bind(v.load(x, real[r] * weight.k + panel.first + k)) for r in range(TILE_ROWS)]
        for r, part, at in places:
            v.store(acc, at, v.load(acc, at, lanes) + v.splat(values[r], lanes) * columns[part], lanes)

    with v.when(panel.first > 0):
        for r, part, at in places:
            v.store(acc, at, v.load(y, real[r] * weight.n + n + part, lanes) + v.load(acc, at, lanes), lanes)
    with v.when(panel.first + panel.depth == weight.k):
        for r, part, at in places:
            v.store(acc, at, epilogue.at(real[r], n + part, lanes) + v.load(acc, at, lanes), lanes)
    for r in range(TILE_ROWS):
        with v.when(row + r < end):
            for part in range(0, width, lanes):
                v.store(y, real[r] * weight.n + n + part, v.load(acc, r * width + part, lanes), lanes)
